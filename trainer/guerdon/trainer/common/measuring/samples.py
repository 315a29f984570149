"""samples.jsonl: completions to read, with what they earned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from guerdon.trainer.common.services.types import Group, Sample

KEYS = {
    "step": "the step that trained on it (rft: 0, when it was sampled); for evaluations, the "
    "policy's (rft: of fine-tuning)",
    "kind": "`train`, or the evaluation: `before`, `eval`, `after`",
    "prompt_index": "its prompt's place in the prompts file (of evaluations, the held-out one), "
    "from 0",
    "task": "which drawing of that prompt it belongs to",
    "sample": "which of the drawing's completions, from 0",
    "prompt": "the messages; beside it stand `tools` and `chat_template_kwargs`, where it has them",
    "response": "its text as rewards see it: with special tokens, but for the one that ended it",
    "reward": "the weighted sum, before shaping",
    "parts": "each reward's raw score, by name",
    "tokens": "of the response",
    "finished": "whether it ended by itself",
    "versions": "the oldest and the newest weight version that drew its tokens",
    "answer": "the prompt's right answer, where there is one",
}
"""What each key of a row is."""


class SampleTable:
    """Appends completions to samples.jsonl.

    Args:
        path: the file.
        rows: completions of a training step that are written; evaluations are written whole.
        main: whether this is the process that writes.
    """

    def __init__(self, path: Path, rows: int, *, main: bool = True) -> None:
        self._path, self._rows, self._main = path, rows, main

    def add(self, step: int, groups: Sequence[Group], kind: str = "train") -> None:
        """Write completions.

        Args:
            step: the step that trained on them; for evaluations, the policy's.
            groups: scored.
            kind: `train`, of which the first completion of each prompt comes first and only
                `rows` are written; or `before`, `eval` and `after`, of which all are.
        """
        if not self._main:
            return
        chosen = _spread(groups)
        if kind == "train":
            chosen = chosen[: self._rows]
        lines = [
            json.dumps(_row(step, kind, group, sample), allow_nan=False, ensure_ascii=False)
            for group, sample in chosen
        ]
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write("".join(line + "\n" for line in lines))


def before_and_after(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The first completion to each held-out prompt before training, and after it.

    A run that was given more steps has been evaluated after training more than once: the last
    time counts.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {"before": {}, "after": {}}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            row = json.loads(line) if line else {}
            if row.get("kind") in found:
                rows = found[row["kind"]]
                first = rows.setdefault(row["prompt_index"], row)
                if row["step"] > first["step"]:
                    rows[row["prompt_index"]] = row
    both = sorted(found["before"].keys() & found["after"].keys())
    return [(found["before"][index], found["after"][index]) for index in both]


def _spread(groups: Sequence[Group]) -> list[tuple[Group, Sample]]:
    """Every group's first completion, then every group's second, and so on."""
    columns = zip_longest(*([(group, s) for s in group.samples] for group in groups))
    return [entry for column in columns for entry in column if entry is not None]


def _row(step: int, kind: str, group: Group, sample: Sample) -> dict[str, Any]:
    return {"step": step, "kind": kind, **sample_row(group, sample)}


def sample_row(group: Group, sample: Sample) -> dict[str, Any]:
    """What a completion is, by `KEYS`, wherever it is of."""
    row = group.task.row
    return {
        "prompt_index": row.index,
        "task": group.task.uid,
        "sample": sample.index,
        "prompt": [dict(turn) for turn in row.turns],
        **row.inputs.columns(),
        "response": sample.text,
        "reward": sample.reward,
        "parts": sample.parts,
        "tokens": sample.tokens,
        "finished": sample.finished,
        "versions": [int(sample.versions_T.min()), int(sample.versions_T.max())],
        **({"answer": row.answer} if row.answer is not None else {}),
    }
