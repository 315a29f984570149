"""Toy ratings and solutions, which a tiny model learns in a few seconds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.toy import WORDS

from guerdon.trainer.reward.objectives import answer_trainer
from guerdon.trainer.reward.settings import AttributeSettings, ProcessSettings

VALUES: dict[str, Any] = {
    "epochs": 4.0, "batch_size": 8, "lr": 3e-3, "dtype": "float32", "plots": False, "log_every": 1,
    "max_length": 128,
}  # fmt: skip


def rated_rows(count: int, seed: int, *, complete: bool = False) -> list[dict[str, Any]]:
    """Answers rated by how often they say `good` (helpful), and by `bad` (harsh); some unrated."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        good, bad = draw.randint(0, 2), draw.randint(0, 1)
        words = draw.choices(WORDS[:8], k=4) + ["good"] * good + ["bad"] * bad
        draw.shuffle(words)
        ratings: dict[str, Any] = {"helpful": 1.0 + good, "harsh": 2 * bad, "odd": i}
        if not complete:
            ratings |= {"helpful": None} if i % 5 == 0 else {}
            ratings = {k: v for k, v in ratings.items() if not (k == "harsh" and i % 5 == 2)}
        user = [{"role": "user", "content": f"{i} {seed} what now"}]
        kind = "even" if i % 2 == 0 else "uneven"
        rows.append(
            {"prompt": user, "response": " ".join(words), "attributes": ratings, "kind": kind}
        )
    return rows


def solution_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Solutions whose wrong steps say `bad` and whose right ones say `good`."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        labels = [draw.random() < 0.7 for _ in range(draw.randint(1, 4))]
        steps = []
        for label in labels:
            words = draw.choices(WORDS, k=2)
            words.insert(draw.randrange(3), "good" if label else "bad")
            steps.append(" ".join(words))
        prompt = f"{i} {seed} how many?"
        rows.append({"prompt": prompt, "completions": steps, "labels": labels, "kind": "ab"[i % 2]})
    return rows


def attribute_settings(
    base: Path, data: tuple[Path, Path], output: Path, **more: Any
) -> AttributeSettings:
    """Settings with which a tiny model learns the toy ratings."""
    named = {"attribute": ("helpful=1", "harsh=-0.5"), "lr": 1e-2}
    return AttributeSettings(
        base=str(base),
        train=str(data[0]),
        eval=str(data[1]),
        output=str(output),
        **(VALUES | named | more),
    )


def process_settings(
    base: Path, data: tuple[Path, Path], output: Path, **more: Any
) -> ProcessSettings:
    """Settings with which a tiny model learns the toy solutions."""
    return ProcessSettings(
        base=str(base), train=str(data[0]), eval=str(data[1]), output=str(output), **(VALUES | more)
    )


def interrupt_rows_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training end as by Ctrl-C."""
    whole = answer_trainer.AnswerTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(answer_trainer.AnswerTrainer, "training_step", training_step)
