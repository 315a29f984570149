"""Toy preferences and runs, shared by the tests of the trainer."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console
from tests.support.command import read_rows

from guerdon.trainer.common.trl.recipe import fine_tune
from guerdon.trainer.reward.folder import RewardFolder
from guerdon.trainer.reward.objectives.read_task import read_task
from guerdon.trainer.reward.settings import RewardSettings

WORDS = ["rain", "sun", "egg", "water", "Rome", "Paris", "tens", "help", "eight", "put", "hot"]


def toy_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Pairs in which the better answer says `good` and the worse one `bad`, at any place."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        prompt = f"{i} {seed} " + " ".join(draw.choices(WORDS, k=draw.randint(2, 8)))
        answers = []
        for word in ("good", "bad"):
            words = draw.choices(WORDS, k=draw.randint(2, 6))
            words.insert(draw.randrange(len(words) + 1), word)
            answers.append([{"role": "assistant", "content": " ".join(words)}])
        user = [{"role": "user", "content": prompt}]
        rows.append({"prompt": user, "chosen": answers[0], "rejected": answers[1]})
    return rows


def write_rows(path: Path, rows: list[Any]) -> Path:
    """A JSONL file; text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_toy(path: Path, count: int, seed: int) -> Path:
    """A JSONL file of toy pairs."""
    return write_rows(path, toy_rows(count, seed))


def toy_settings(base: Path, toy: tuple[Path, Path], output: Path, **more: Any) -> RewardSettings:
    """Settings with which a tiny model learns the toy preferences in a second or two."""
    values: dict[str, Any] = {
        "epochs": 3.0, "batch_size": 8, "lr": 3e-3, "dtype": "float32", "plots": False,
        "log_every": 1, "max_length": 128,
    }  # fmt: skip
    return RewardSettings(
        base=str(base), train=str(toy[0]), eval=str(toy[1]), output=str(output), **(values | more)
    )


def run(settings: RewardSettings, *, resume: bool = False) -> tuple[dict[str, Any], str]:
    """A whole run in this process; its summary and what it printed."""
    folder = RewardFolder(settings, resume=resume, overwrite=False)
    text = io.StringIO()
    summary = fine_tune(read_task(settings), folder, Console(file=text, width=100))
    return summary, text.getvalue()


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return read_rows(folder / "metrics.jsonl")
