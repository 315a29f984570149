"""What a run starts from, checked before anything is asked of a service."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from guerdon.trainer.common.data.tokens import embeddings_of, load_tokenizer
from guerdon.trainer.common.models.language_model import load_config
from guerdon.trainer.common.services.credentials import Credentials
from guerdon.trainer.common.services.inputs import RunInputs, check_positions
from guerdon.trainer.common.services.patience import parse_address
from guerdon.trainer.common.services.prompts import load_prompts
from guerdon.trainer.common.services.rewards import parse_reward
from guerdon.trainer.common.services.verifiers import parse_verifier
from guerdon.trainer.rl.settings import RunSettings


def read_inputs(settings: RunSettings) -> RunInputs:
    """Load and check all that can be wrong before a service is asked.

    Raises:
        TrainingError: something is; says what.
    """
    Credentials.of(settings)
    parse_address(settings.sampler, "sampler")
    for setting in ("reward", "heldout_reward"):
        for spec in getattr(settings, setting):
            parse_reward(spec, setting)
    verifiers = [parse_verifier(spec) for spec in settings.verifier]
    policy, config = load_config(settings.policy)
    tokenizer = load_tokenizer(policy)
    how: dict[str, Any] = {
        "max_prompt_tokens": settings.max_prompt_tokens,
        "vocab_size": embeddings_of(config),
        "control_tokens": settings.control_tokens,
    }
    prompts = load_prompts(settings.prompts, tokenizer, **how)
    held_out = load_prompts(settings.eval_prompts, tokenizer, limit=settings.eval_limit, **how)
    try:
        for verifier in verifiers:
            verifier.check_rows(prompts)
            verifier.check_rows(held_out)
    finally:
        for verifier in verifiers:
            verifier.verifier.close()
    check_positions(config, settings.max_tokens, max(prompts.longest, held_out.longest))
    return RunInputs(policy, config, tokenizer, prompts, held_out)


def show_inputs(inputs: RunInputs, console: Console) -> None:
    """The prompts' sizes, and a warning for all that is odd."""
    for name, prompts in (("prompts", inputs.prompts), ("held out", inputs.eval_prompts)):
        console.print(
            f"{name}: {len(prompts)} of {prompts.source}, at most {prompts.longest} tokens",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if prompts.duplicates:
            console.print(f"  [yellow]{prompts.duplicates} prompts occur more than once[/yellow]")
        if prompts.reasoning_dropped:
            console.print(
                f"  [yellow]{prompts.reasoning_dropped} prompts have reasoning in earlier turns, "
                "which the chat template leaves out[/yellow]"
            )
    if inputs.shared:
        console.print(f"  [yellow]{inputs.shared} held-out prompts are trained on[/yellow]")
