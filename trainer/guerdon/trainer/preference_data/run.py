"""Sample answers, score them, pair them: what `guerdon data pairs` does.

sample and score every prompt    the sampler, the rewards    → scored.jsonl, as they come
pick                             neither                     → pairs.jsonl, summary.json
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from rich.console import Console

from guerdon.trainer.common.data.tokens import embeddings_of, load_tokenizer
from guerdon.trainer.common.errors import DataError, TrainingError
from guerdon.trainer.common.measuring.measures import percentiles
from guerdon.trainer.common.models.language_model import load_config
from guerdon.trainer.common.run_folder import SUMMARY, RunFolder, write_whole
from guerdon.trainer.common.services.credentials import reach
from guerdon.trainer.common.services.pair_selection import Picked, pick_pairs
from guerdon.trainer.common.services.progress import DrawingBar
from guerdon.trainer.common.services.prompts import Prompts, load_prompts
from guerdon.trainer.common.services.reward_requests import Asking
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler, StaleSampler, sampling_seed
from guerdon.trainer.common.services.scored_store import SCORED, ScoredGroups
from guerdon.trainer.common.services.settings import SERVICES
from guerdon.trainer.common.services.types import Group, Task
from guerdon.trainer.preference_data.settings import PairsSettings

PAIRS = "pairs.jsonl"


class PairsFolder(RunFolder):
    """A run's folder: config.toml, scored.jsonl, pairs.jsonl, summary.json."""

    may_change = frozenset(
        {
            "output",
            "sampler",
            "in_flight",
            *SERVICES,
            "pick",
            "min_margin",
            "max_per_prompt",
            "unfinished",
        }
    )
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
        console.print(f"resuming with {len(scored)} prompts sampled and scored", highlight=False)
    scored.begin()
    asyncio.run(_draw(settings, tokenizer, prompts, scored, console))
    picked = pick_pairs(scored.groups, settings)
    summary = _summary(settings, prompts, scored, picked)
    if not picked.pairs:
        raise DataError(
            "no pair can be made: the answers to each prompt are alike, or their rewards are not "
            f"further apart than {settings.min_margin:g} (--min-margin)"
        )
    write_whole(folder.path / PAIRS, "".join(_row(*pair) for pair in picked.pairs))
    write_whole(folder.path / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _inputs(settings: PairsSettings) -> tuple[Any, Prompts]:
    policy, config = load_config(settings.policy)
    tokenizer = load_tokenizer(policy)
    prompts = load_prompts(
        settings.prompts,
        tokenizer,
        max_prompt_tokens=settings.max_prompt_tokens,
        limit=settings.limit,
        vocab_size=embeddings_of(config),
        control_tokens=settings.control_tokens,
    )
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
        asking=Asking.of(settings, tokenizer, prompts),
        **reach(settings),
    )


async def _draw(
    settings: PairsSettings,
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
    gate = asyncio.Semaphore(settings.in_flight)
    try:
        await rewards.start()
        policy = await sampler.check(0, prompts.longest, prompts.largest_id)
        with DrawingBar(console, len(prompts), len(scored)) as bar:

            async def one(task: Task) -> None:
                async with gate:
                    group = await _group(sampler, task, settings, policy.weight_version)
                    scored.add(await rewards.score(group))
                    bar.add(group)

            async with asyncio.TaskGroup() as tasks:
                for task in scored.missing:
                    tasks.create_task(one(task))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await sampler.close()
        await rewards.close()


async def _group(sampler: GroupSampler, task: Task, settings: PairsSettings, version: int) -> Group:
    try:
        return await sampler.sample(
            task,
            settings.samples_per_prompt,
            min_version=version,
            seed=sampling_seed(settings.seed, 0, task.uid),
        )
    except StaleSampler as error:
        raise TrainingError(
            f"the sampler was restarted with older weights: it served version {version} when this "
            f"began ({error})"
        ) from error


def _row(group: Group, chosen: Any, rejected: Any) -> str:
    row = {
        "prompt": [dict(turn) for turn in group.task.row.turns],
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
