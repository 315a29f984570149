"""Sample answers, score them, pair them: what `guerdon data pairs` does.

sample and score every prompt    the sampler, the rewards    → scored.jsonl, as they come
pick                             neither                     → pairs.jsonl, summary.json
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from rich.console import Console

from guerdon.trainer.common.data.tokens import load_tokenizer
from guerdon.trainer.common.errors import DataError, TrainingError
from guerdon.trainer.common.measuring.measures import percentiles
from guerdon.trainer.common.models.language_model import find_policy
from guerdon.trainer.common.report import say
from guerdon.trainer.common.run_folder import SUMMARY, RunFolder, write_json, write_whole
from guerdon.trainer.common.services.credentials import reach
from guerdon.trainer.common.services.drawing import Drawing, draw_missing
from guerdon.trainer.common.services.inputs import read_prompts
from guerdon.trainer.common.services.pair_selection import Picked, pick_pairs
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.reward_requests import RequestRules
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.common.services.scored_store import SCORED, ScoredGroups
from guerdon.trainer.common.services.settings import SERVICES
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.preference_data.settings import PairsSettings

PAIRS = "pairs.jsonl"


class PairsFolder(RunFolder):
    """A run's folder: config.toml, data.json (what scored), scored, pairs, summary.json."""

    may_change = frozenset({
        "output", "sampler", "in_flight", *SERVICES,
        "pick", "min_margin", "max_per_prompt", "unfinished",
    })  # fmt: skip
    """A resumed run may pick otherwise of what was sampled."""


def collect(settings: PairsSettings, folder: PairsFolder, console: Console) -> dict[str, Any]:
    """The whole run, or what is left of it; the summary that is also written to summary.json.

    Raises:
        TrainingError: a service stayed away or refused; what was scored is on the disk.
        DataError: no pair can be made of the answers.
    """
    tokenizer, prompts = _inputs(settings)
    folder.begin()
    scored = ScoredGroups(folder.path / SCORED, prompts, settings.samples_per_prompt)
    if scored:
        say(console, f"resuming with {len(scored)} prompts sampled and scored")
    asyncio.run(_draw(settings, folder, tokenizer, prompts, scored, console))
    picked = pick_pairs(scored.groups, settings)
    summary = _summary(settings, prompts, scored, picked)
    if not picked.pairs:
        raise DataError(
            "no pair can be made: the answers to each prompt are alike, or their rewards are not "
            f"further apart than {settings.min_margin:g} (--min-margin)"
        )
    write_whole(folder.path / PAIRS, "".join(_row(*pair) for pair in picked.pairs))
    write_json(folder.path / SUMMARY, summary)
    return summary


def _inputs(settings: PairsSettings) -> tuple[Any, Prompts]:
    policy, config = find_policy(settings.policy)
    tokenizer = load_tokenizer(policy)
    prompts = read_prompts(settings, tokenizer, config, limit=settings.limit)
    rewards = _rewards(settings, tokenizer, prompts)
    try:
        for verifier in rewards.verifiers:
            verifier.check_rows(prompts)
    finally:
        asyncio.run(rewards.close())
    return tokenizer, prompts


def _rewards(settings: PairsSettings, tokenizer: Any, prompts: Prompts) -> RewardSource:
    return RewardSource(
        settings.reward,
        settings.verifier,
        normalize=settings.reward_normalize,
        rules=RequestRules.of(settings, tokenizer, prompts),
        **reach(settings),
    )


async def _draw(
    settings: PairsSettings,
    folder: PairsFolder,
    tokenizer: Any,
    prompts: Prompts,
    scored: ScoredGroups,
    console: Console,
) -> None:
    """Sample and score what is not there yet."""
    if not scored.missing:
        return
    rewards = _rewards(settings, tokenizer, prompts)
    sampler = GroupSampler(
        settings.sampler,
        tokenizer,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        **reach(settings),
    )
    drawing = Drawing(settings, sampler, rewards, _restarted, seeded=True)
    try:
        await rewards.start()
        folder.check_data(folder.path, rewards.state())
        policy = await sampler.check(0, prompts.longest, prompts.largest_id)
        drawing.published(policy.weight_version)
        await draw_missing(
            drawing, scored, rewards, console, stream=0, in_flight=settings.in_flight
        )
    finally:
        await drawing.close()


async def _restarted() -> int:
    raise TrainingError("the sampler was restarted with older weights than it had when this began")


def _row(group: Group, chosen: Any, rejected: Any) -> str:
    row = {
        "prompt": [dict(turn) for turn in group.task.row.turns],
        **group.task.row.inputs.columns(),
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "margin": chosen.reward - rejected.reward,
        "prompt_index": group.task.row.index,
    }
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def _summary(
    settings: PairsSettings, prompts: Prompts, scored: ScoredGroups, picked: Picked
) -> dict[str, Any]:
    samples = [sample for group in scored.groups for sample in group.samples]
    return {
        "pairs": len(picked.pairs),
        "prompts": len(prompts),
        "completions": len(samples),
        "left_out": dict(picked.left_out),
        "margin": percentiles([a.reward - b.reward for _, a, b in picked.pairs]),
        "reward": percentiles([sample.reward for sample in samples]),
        "tokens": percentiles([float(sample.tokens) for sample in samples]),
        "finished": sum(sample.finished for sample in samples) / len(samples),
        "chosen_is_longer": (
            sum(a.tokens > b.tokens for _, a, b in picked.pairs) / max(1, len(picked.pairs))
        ),
        "oldest_version": min(sample.oldest_version for sample in samples),
        "newest_version": max(int(sample.versions_T.max()) for sample in samples),
        "source": settings.prompts,
    }
