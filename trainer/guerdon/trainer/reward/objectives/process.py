"""Process rewards: whether each step of a solution is right.

The head has two outputs, wrong and right, read at the marker that ends a step; the loss is the
cross-entropy of the step's label (Lightman et al. 2023, arXiv:2305.20050, section 2.6). Rows, head
and labels are those of TRL's `PRMTrainer`, which TRL has no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guerdon.data import RowError, parse_prompt, read_template_inputs
from guerdon.trainer.common.data.row_notes import group_values
from guerdon.trainer.common.data.same_prompts import prompt_numbers
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.measures import Bounded, Floats, Ints
from guerdon.trainer.reward.objectives import step_measures
from guerdon.trainer.reward.objectives.answer_task import AnswerTask
from guerdon.trainer.reward.objectives.rated_answers import (
    AnswerInputs,
    RatedAnswer,
    TokenizedAnswer,
    TokenizedAnswers,
    read_answers,
)
from guerdon.trainer.reward.settings import ProcessSettings


def read_process(settings: ProcessSettings) -> ProcessTask:
    """Load and check the data and the tokenizer.

    Raises:
        TrainingError: something is wrong; says what.
    """

    def parse(row: Mapping[str, Any], by: Sequence[str]) -> RatedAnswer:
        return parse_steps(row, settings.step_marker, by)

    return ProcessTask(read_answers(settings, parse, marker=settings.step_marker))


def parse_steps(row: Mapping[str, Any], marker: str, by: Sequence[str]) -> RatedAnswer:
    """The solution of a row with `prompt`, `completions` (its steps) and `labels`.

    The answer is the steps, each with the marker after it and nothing else between.

    Args:
        row: of the data; a label is true or false, or 1 or 0.
        marker: ends a step.
        by: fields to break results down by.

    Raises:
        RowError: a field is missing or malformed, a step is empty or holds the marker, or there
            are more labels than steps, or fewer.
    """
    if row.get("prompt") is None:
        raise RowError("prompt", "is missing")
    for field in ("completions", "labels"):
        if not isinstance(row.get(field), Sequence) or isinstance(row[field], str):
            raise RowError(field, "must be a list, with an entry for each step")
    steps, labels = row["completions"], row["labels"]
    if not steps:
        raise RowError("completions", "is empty")
    if len(labels) != len(steps):
        raise RowError("labels", f"has {len(labels)} entries for {len(steps)} completions")
    for i, (step, label) in enumerate(zip(steps, labels, strict=True)):
        _check_step(i, step, label, marker)
    answer = "".join(f"{step}{marker}" for step in steps)
    targets = tuple(float(label) for label in labels)
    inputs = read_template_inputs(row, RowError)
    return RatedAnswer(parse_prompt(row["prompt"]), answer, targets, group_values(row, by), inputs)


def _check_step(place: int, step: Any, label: Any, marker: str) -> None:
    if not isinstance(step, str) or not step.strip():
        raise RowError(f"completions[{place}]", "must be text that is not empty")
    if marker in step:
        raise RowError(f"completions[{place}]", f"holds the step marker {marker!r} itself")
    if not isinstance(label, int) or label not in (0, 1):
        raise RowError(f"labels[{place}]", f"is {label!r}, it must be true or false")


def step_cross_entropy(
    logits_N2: Tensor, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """The sum of the steps' cross-entropies, and the accuracy.

    Args:
        logits_N2: wrong and right, in float32.
        batch: `labels` [N], 1 for a right step and 0 for a wrong one.
    """
    labels_N = batch["labels"]
    hits = (logits_N2.detach().argmax(-1) == labels_N).float().mean().item()
    return functional.cross_entropy(logits_N2, labels_N, reduction="sum"), {"accuracy": hits}


class ProcessTask(AnswerTask[list[Floats]]):
    """The steps of a solution, and what they amount to."""

    kind = "process"
    headline = "step_auc"
    tokenwise = True
    outputs = ("wrong", "right")
    settings: ProcessSettings

    def __init__(self, inputs: AnswerInputs) -> None:
        super().__init__(inputs)
        self._right = [np.array(row.targets, dtype=np.float64) for row in inputs.eval.rows]
        self._prompts = prompt_numbers(inputs.eval_data.rows[row.row] for row in inputs.eval.rows)
        for data, tokens in ((inputs.train_data, inputs.train), (inputs.eval_data, inputs.eval)):
            labels = {label for row in tokens.rows for label in row.targets}
            if len(labels) < 2:
                kind = "right" if 1.0 in labels else "wrong"
                raise DataError(f"{data.source}: every step is {kind}, there is nothing to tell")

    def about(self, tokens: TokenizedAnswers) -> list[str]:
        """How many steps there are, and how many are right."""
        labels = [label for row in tokens.rows for label in row.targets]
        clean = sum(all(row.targets) for row in tokens.rows)
        return [
            f"{len(labels)} steps, {np.mean([label or 0.0 for label in labels]):.3f} of them right;"
            f" {clean} solutions have no wrong step"
        ]

    # Training

    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The cross-entropy."""
        return step_cross_entropy(logits, batch)

    def targets(self, rows: Sequence[TokenizedAnswer]) -> dict[str, Tensor]:
        """A label for each step."""
        return {"labels": torch.tensor([int(t or 0) for row in rows for t in row.targets])}

    # Measuring

    def measure(self, model: Any, dtype: str) -> list[Floats]:
        """Raw scores of each held-out solution's steps."""
        return self._scores(model, dtype, self.inputs.eval.rows)

    def _scores(self, model: Any, dtype: str, rows: Sequence[TokenizedAnswer]) -> list[Floats]:
        found = self.head_outputs(model, dtype, rows)
        return [logits_S2[:, 1] - logits_S2[:, 0] for logits_S2 in found]

    def describe_measures(self, found: list[Floats]) -> str:
        """The accuracy of steps."""
        return f"step accuracy {self.logged(found)['eval_accuracy']:.3f}"

    def logged(self, found: list[Floats]) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        scores, right, owners = self._flat(found, range(len(found)))
        area = step_measures.auc(scores, right, owners)
        loss = step_measures.calibration(scores, right)["log_loss"]
        hits = float(((scores > 0) == (right == 1)).mean())
        return {"eval_accuracy": hits, "eval_loss": loss} | (
            {"eval_auc": area.value} if area else {}
        )

    def _flat(self, found: Sequence[Floats], places: Sequence[int]) -> tuple[Floats, Floats, Ints]:
        """Score, label and prompt of every step of some rows."""
        owners = np.repeat(self._prompts[places], [len(found[i]) for i in places])
        scores = np.concatenate([found[i] for i in places])
        return scores, np.concatenate([self._right[i] for i in places]), owners

    def _told(self, found: Sequence[Floats], places: Sequence[int]) -> dict[str, Any]:
        """Accuracy and AUC of the steps of some rows."""
        scores, right, owners = self._flat(found, places)
        hits = ((scores > 0) == (right == 1)).astype(np.float64)
        return {
            "step_accuracy": asdict(step_measures.share(hits, owners)),
            "step_auc": _as_dict(step_measures.auc(scores, right, owners)),
        }

    def summarise(self, found: list[Floats]) -> dict[str, Any]:
        """All that summary.json says of the held-out rows."""
        everything = list(range(len(found)))
        scores, right, _ = self._flat(found, everything)
        told = self._told(found, everything)
        low = told["step_auc"]["low"] if told["step_auc"] else None
        combine = step_measures.AGGREGATE[self.settings.step_aggregation]
        clean = np.array([float(labels.all()) for labels in self._right])
        whole = step_measures.auc(np.array([combine(part) for part in found]), clean, self._prompts)
        return {
            **told,
            "steps_right": {"n": len(right), "share": float(right.mean())},
            "above_chance": low is not None and low > 0.5,
            "first_error": step_measures.first_errors(found, self._right, self._prompts),
            "solution_auc": _as_dict(whole),
            "calibration": step_measures.calibration(scores, right),
            "subgroups": self.subgroups(
                lambda places: {"n": len(places), **self._told(found, places)}
            ),
        }

    def train_scores(self, model: Any, dtype: str, places: Sequence[int]) -> Floats:
        """Scores of training solutions."""
        combine = step_measures.AGGREGATE[self.settings.step_aggregation]
        rows = [self.inputs.train.rows[i] for i in places]
        return np.array([combine(part) for part in self._scores(model, dtype, rows)])

    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: list[Floats]) -> None:
        """The run's pictures."""
        from guerdon.trainer.reward.objectives.plots import draw_steps

        scores, right, _ = self._flat(found, range(len(found)))
        bins = step_measures.calibration(scores, right)["bins"]
        draw_steps(folder, rows, scores, right, bins)

    def manifest_fields(self) -> dict[str, Any]:
        """The token that ends a step, and how steps become one score."""
        return {
            "step_marker": self.settings.step_marker,
            "step_aggregation": self.settings.step_aggregation,
        }


def _as_dict(found: Bounded | None) -> dict[str, Any] | None:
    return asdict(found) if found else None
