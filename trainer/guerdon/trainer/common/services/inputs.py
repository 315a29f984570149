"""The policy and the prompts that a run or an evaluation starts from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from guerdon.trainer.common.data.same_prompts import conversation_key
from guerdon.trainer.common.data.tokens import embedded_tokens, max_positions
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.report import say
from guerdon.trainer.common.services.credentials import Credentials, reach
from guerdon.trainer.common.services.patience import parse_address
from guerdon.trainer.common.services.prompts import Prompts, load_prompts
from guerdon.trainer.common.services.reward_specs import parse_reward
from guerdon.trainer.common.services.settings import DrawSettings, PublishSettings
from guerdon.trainer.common.services.verifiers import WeightedVerifier, parse_verifier


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The policy's folder, config and tokenizer, and the prompts."""

    policy: Path
    config: Any
    """The config of `transformers`."""
    tokenizer: Any
    prompts: Prompts
    eval_prompts: Prompts

    @property
    def shared(self) -> int:
        """Held-out prompts that are trained on too: a leak."""
        trained = {conversation_key(row.turns, row.inputs) for row in self.prompts.rows}
        held_out = (conversation_key(row.turns, row.inputs) for row in self.eval_prompts.rows)
        return sum(key in trained for key in held_out)


def check_services(settings: PublishSettings) -> None:
    """Refuse addresses, tokens and rewards that can't be.

    Raises:
        SettingsError: one can't; says which.
    """
    Credentials.of(settings)
    parse_address(settings.sampler, "sampler")
    for setting in ("reward", "heldout_reward"):
        for spec in getattr(settings, setting):
            parse_reward(spec, setting)


def read_prompts(
    settings: DrawSettings, tokenizer: Any, config: Any, part: str = "prompts", *, limit: int
) -> Prompts:
    """The prompts of a file or a data set, rendered and tokenised as the settings say.

    Args:
        settings: of the run.
        tokenizer: of the policy.
        config: of the policy.
        part: the setting that names them, `prompts` or `eval_prompts`.
        limit: take so many only; 0 takes all.

    Raises:
        TrainingError: one can't be read, or is too long.
    """
    return load_prompts(
        getattr(settings, part),
        tokenizer,
        max_prompt_tokens=settings.max_prompt_tokens,
        limit=limit,
        vocab_size=embedded_tokens(config),
        control_tokens=settings.control_tokens,
        split=getattr(settings, f"{part}_split"),
        prompt_key=settings.prompt_key,
        answer_key=settings.answer_key,
    )


def check_verifiers(settings: DrawSettings, *parts: Prompts) -> None:
    """Refuse prompts that lack what a verifier needs.

    Raises:
        DataError: a row does; names it.
    """
    verifiers = [parse_verifier(spec, **reach(settings)) for spec in settings.verifier]
    try:
        for verifier in verifiers:
            for prompts in parts:
                verifier.check_rows(prompts)
    finally:
        asyncio.run(_closed(verifiers))


async def _closed(verifiers: Sequence[WeightedVerifier]) -> None:
    for verifier in verifiers:
        await verifier.verifier.close()


def show_prompts(name: str, prompts: Prompts, console: Console) -> None:
    """Say how many prompts there are, and how long the longest is."""
    source = f"{len(prompts)} of {prompts.source}"
    say(console, f"{name}: {source}, at most {prompts.longest} tokens")


def check_positions(config: Any, max_tokens: int, longest: int) -> None:
    """Refuse what the policy has no positions for.

    Args:
        config: of the policy.
        max_tokens: of a completion.
        longest: tokens of the longest prompt.

    Raises:
        SettingsError: both together are too long.
    """
    known = max_positions(config)
    if known and longest + max_tokens > known:
        raise SettingsError(
            f"the longest prompt has {longest} tokens and max_tokens is {max_tokens}, "
            f"but the policy has {known} positions"
        )
