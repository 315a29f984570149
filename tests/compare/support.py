"""Folders as `guerdon train` and `guerdon eval policy` leave them, with numbers that are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.statistics import estimate

Scores = Sequence[Sequence[float]]
"""By prompt, of each completion."""

START = "smollm2-135m-instruct"
FIELDS = ("fact", "howto")


def scores(prompts: int, mean: float, seed: int, spread: float = 0.3) -> list[list[float]]:
    """Two completions a prompt; prompts of one place are alike whatever the seed."""
    level = np.random.default_rng(0).normal(0, 1, prompts)
    noise = np.random.default_rng(seed).normal(0, spread, (prompts, 2))
    found: list[list[float]] = (mean + level[:, None] + noise).tolist()
    return found


def write_evaluation(
    folder: Path,
    reward: Scores,
    *,
    second: Scores | None = None,
    kl: float = 0.0,
    policy: str = "runs/x/final",
    response: str = "An answer.",
    measures: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A folder of `guerdon eval policy`: evaluation.json and samples.jsonl.

    Args:
        folder: to be made.
        reward: of each completion.
        second: by the held-out model.
        kl: mean, in nats.
        policy: that was evaluated.
        response: begins each completion.
        measures: more of them, or others.
        changes: of keys of evaluation.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of = {"reward": reward} | ({"heldout_reward": second} if second else {})
    found = {name: estimate([float(np.mean(row)) for row in rows]) for name, rows in of.items()}
    noisy = estimate([kl + 0.1 * (i % 3 - 1) * (kl > 0) for i in range(len(reward))])
    values: dict[str, Any] = {
        "format": 1,
        "policy": policy,
        "reference": START,
        "prompts": {"source": "held-out.jsonl", "sha256": "a" * 64, "count": len(reward)},
        "samples_per_prompt": len(reward[0]),
        "max_tokens": 48,
        "temperature": 1.0,
        "seed": 0,
        "rewards": ["proxy"],
        "measures": {name: e.as_dict() for name, e in found.items()}
        | {
            "kl": noisy.as_dict(),
            "length": estimate([20.0 + i % 5 for i in range(len(reward))]).as_dict(),
            "finished": estimate([1.0, 0.5] * (len(reward) // 2)).as_dict(),
            "repetition": estimate([0.02, 0.0] * (len(reward) // 2)).as_dict(),
            "refusal": estimate([0.0, 0.5] * (len(reward) // 2)).as_dict(),
        }
        | dict(measures or {}),
        "distinct_1": 0.41,
        "distinct_2": 0.83,
        "reward_per_kl": None,
        "win_rate": None,
        "subgroups": {
            "category": {
                value: {
                    "reward": estimate(
                        [float(np.mean(row)) for row in reward[place :: len(FIELDS)]]
                    ).as_dict()
                }
                for place, value in enumerate(FIELDS)
            }
        },
        "seconds": {"sample": 10.0},
        "versions": {"guerdon": "0.1.0"},
    } | changes
    (folder / "evaluation.json").write_text(json.dumps(values), encoding="utf-8")
    rows = [
        {
            "prompt_index": i,
            "sample": j,
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "response": f"{response} {i}.{j}",
            "reward": value,
            "parts": {"proxy": value},
            "kl": kl,
            "tokens": 20,
            "finished": True,
            "refusal": 0,
            "category": FIELDS[i % len(FIELDS)],
            **({"heldout_reward": second[i][j]} if second else {}),
        }
        for i, row in enumerate(reward)
        for j, value in enumerate(row)
    ]
    write_rows(folder / "samples.jsonl", rows)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def write_aligned(folder: Path, recipe: str = "dpo", **changes: Any) -> Path:
    """A finished run of `guerdon train sft|dpo|orpo`."""
    before: dict[str, Any] = {"nll": 2.5} if recipe == "sft" else {"chosen_nll": 2.5}
    after: dict[str, Any] = {"nll": 2.0} if recipe == "sft" else {
        "chosen_nll": 2.25,
        "implicit_accuracy": {"value": 0.75, "low": 0.66, "high": 0.82, "n": 94},
    }  # fmt: skip
    return _run(
        folder,
        {"train": "pairs.jsonl"},
        {
            "algorithm": recipe,
            "policy": START,
            "steps": 44,
            "seed": 3,
            "before": before,
            "after": after,
            "seconds": {"load": 1.0, "train": 119.0},
            "versions": {},
            "data": {},
        }
        | changes,
    )


def write_reinforced(
    folder: Path,
    recipe: str = "ppo",
    *,
    curve: Sequence[Mapping[str, float]] = (),
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A finished run of a recipe of reinforcement learning, which measured itself."""

    def measured(reward: float, kl: float) -> dict[str, Any]:
        values = {"reward": reward, "kl": kl, "length": 20.0, "finished": 0.9, "repetition": 0.0}
        means = {name: estimate([v - 0.1, v + 0.1]).as_dict() for name, v in values.items()}
        return means | {"step": 0, "prompts": 2, "completions": 4, "distinct_1": 0.4,
                        "distinct_2": 0.8}  # fmt: skip

    given = {
        "prompts": "questions.jsonl",
        "eval_prompts": "own.jsonl",
        "max_tokens": 48,
        "reward": ["127.0.0.1:1/proxy"],
        "verifier": [],
        "heldout_reward": [],
        "temperature": 1.0,
    } | dict(settings or {})
    _run(
        folder,
        given,
        {
            "algorithm": recipe,
            "policy": START,
            "steps": 12,
            "seed": 0,
            "before": measured(0.0, 0.0),
            "after": measured(1.0, 2.0),
            "difference": {"reward": estimate([0.9, 1.1]).as_dict()},
            "seconds": {"learn": 60.0, "wait": 30.0},
            "warnings": [],
        }
        | changes,
    )
    if curve:
        write_rows(folder / "metrics.jsonl", curve)
    return folder


def _run(folder: Path, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    (folder / "config.toml").write_text("".join(lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder
