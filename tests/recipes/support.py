"""Settings, groups and rows, shared by the tests of recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.cli import RECIPES
from guerdon.trainer.rl.settings import PPOSettings, RunSettings

KINDS = tuple(RECIPES)

NEEDED: dict[str, Any] = {
    "policy": "m", "sampler": "localhost:1", "prompts": "p.jsonl", "eval_prompts": "e.jsonl",
    "output": "o",
}  # fmt: skip
REWARD = ("localhost:2/helpful",)


def settings_of(kind: type[RunSettings] = PPOSettings, **more: Any) -> RunSettings:
    """Good settings."""
    return kind(**{**NEEDED, "reward": REWARD, **more})


def make_group(
    uid: int,
    rewards: Sequence[float],
    *,
    index: int | None = None,
    ids: Sequence[Sequence[int]] | None = None,
    text: str = "a good answer",
    **parts: Sequence[float],
) -> Group:
    """A scored group; row `index` (the uid when not given) asks, each sample answers `ids`."""
    place = uid if index is None else index
    turns = ({"role": "user", "content": f"question {place}"},)
    prompt_ids_P = np.arange(3, dtype=np.int32)
    task = Task(uid, PromptRow(place, turns, answer=str(place)), prompt_ids_P)
    samples = []
    for i, reward in enumerate(rewards):
        response = np.array(ids[i] if ids else [uid, i, 7], dtype=np.int32)
        samples.append(
            Sample(
                uid,
                i,
                prompt_ids_P,
                response,
                np.full(len(response), -0.5, np.float32),
                np.full(len(response), 2, np.int32),
                i % 2 == 0,
                f"{text} {i}",
                reward,
                {name: values[i] for name, values in parts.items()},
            )
        )
    return Group(task, samples)


def write_prompts(path: Path, rows: Sequence[Any]) -> Path:
    """A prompts file; text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path
