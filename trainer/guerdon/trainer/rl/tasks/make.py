"""Make the JSONL files here anew: `python -m guerdon.trainer.rl.tasks.make`.

No model and no clock takes part: the files are the same, byte for byte, wherever they are
made. `README.md` is their data card.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guerdon.trainer.demo_data import make as preferences

HERE = Path(__file__).parent
SEED = 3
ARITHMETIC = {"train": 400, "eval": 100}
"""Rows of each split."""
LARGEST = 30
"""The largest number that is added."""
SHOWN = (5, 13)
"""The sum in the example, which is never asked for."""
HELD_OUT_NEW = 3
"""Every third new question of a category is held out."""


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE)
    args = parser.parse_args()
    for name, rows in everything().items():
        (args.output / name).write_text(as_jsonl(rows), encoding="utf-8")
        sys.stdout.write(f"{name}: {len(rows)} rows\n")


def everything() -> dict[str, list[dict[str, Any]]]:
    """All files' rows, by file name."""
    files = {f"arithmetic-{split}.jsonl": rows for split, rows in arithmetic().items()}
    return files | {f"questions-{split}.jsonl": rows for split, rows in questions().items()}


def as_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as the lines of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def arithmetic() -> dict[str, list[dict[str, Any]]]:
    """Sums. `a + b` and `b + a` are always in the same split."""
    draw = random.Random(SEED)  # noqa: S311 - no secret; the same in every version of Python
    numbers = range(1, LARGEST + 1)
    pairs = [(a, b) for a in numbers for b in numbers if a <= b and (a, b) != SHOWN]
    draw.shuffle(pairs)
    held_out, rest = pairs[: ARITHMETIC["eval"]], pairs[ARITHMETIC["eval"] :]
    asked = {
        "eval": [draw.choice([(a, b), (b, a)]) for a, b in held_out],
        "train": sorted({way for a, b in rest for way in ((a, b), (b, a))}),
    }
    draw.shuffle(asked["train"])
    return {split: [sum_row(*asked[split][i]) for i in range(ARITHMETIC[split])] for split in asked}


def sum_row(a: int, b: int) -> dict[str, Any]:
    """A prompt that shows the form by one example, and the right number."""
    return {
        "prompt": [
            {"role": "system", "content": "You are a calculator."},
            {"role": "user", "content": "{} + {}".format(*SHOWN)},
            {"role": "assistant", "content": written_out(*SHOWN)},
            {"role": "user", "content": f"{a} + {b}"},
        ],
        "answer": str(a + b),
    }


def written_out(a: int, b: int) -> str:
    """A sum with its result."""
    return f"{a} + {b} = {a + b}"


def questions() -> dict[str, list[dict[str, Any]]]:
    """The harmless prompts of the preference data, and new ones of the same kinds.

    A prompt that the demo's reward model was trained on is never held out here.
    """
    old = [question for question in preferences.read_questions() if not question.harmful]
    splits = preferences.choose_splits(preferences.read_questions())
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for question in old:
        rows[splits[question.prompt]].append(question_row(question.category, question.prompt))
    seen: dict[str, int] = {}
    for category, prompt in new_questions():
        seen[category] = seen.get(category, 0) + 1
        split = "train" if seen[category] % HELD_OUT_NEW else "eval"
        rows[split].append(question_row(category, prompt))
    for split in rows:  # so that the first ones of a file are of all kinds
        random.Random(SEED).shuffle(rows[split])  # noqa: S311
    return rows


def new_questions(path: Path = HERE / "questions.tsv") -> list[tuple[str, str]]:
    """Category and prompt of the questions that are not in the preference data."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(category, prompt) for category, prompt in pairs]


def question_row(category: str, prompt: str) -> dict[str, Any]:
    """One user's turn."""
    return {"prompt": prompt, "category": category}


if __name__ == "__main__":
    main()
