"""Ratings of an answer by attributes: a head of several outputs, by regression.

The loss is the mean squared error over the labels that are known, as in HelpSteer2's and ArmoRM's
regression models (Wang et al. 2024, arXiv:2406.08673, section 4.1; arXiv:2406.12845, eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon.data import RowError, parse_demonstration
from guerdon.trainer.common.data.row_notes import finite, group_values
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.reward import shared_prefix as sharing
from guerdon.trainer.reward.objectives import regression
from guerdon.trainer.reward.objectives.answer_task import AnswerTask
from guerdon.trainer.reward.objectives.answer_trainer import IGNORED
from guerdon.trainer.reward.objectives.rated_answers import (
    AnswerInputs,
    RatedAnswer,
    TokenizedAnswer,
    TokenizedAnswers,
    read_answers,
)
from guerdon.trainer.reward.settings import AttributeSettings


def read_attributes(settings: AttributeSettings) -> AttributeTask:
    """Load and check the data and the tokenizer.

    Raises:
        TrainingError: something is wrong; says what.
    """
    names, others = list(settings.weights), set[str]()

    def parse(row: Mapping[str, Any], by: Sequence[str]) -> RatedAnswer:
        return parse_ratings(row, names, others, by)

    return AttributeTask(read_answers(settings, parse), tuple(sorted(others)))


def parse_ratings(
    row: Mapping[str, Any], names: Sequence[str], others: set[str], by: Sequence[str]
) -> RatedAnswer:
    """The answer of a row and its ratings.

    The text is `messages`, or `prompt` and `response`; the ratings are numbers under
    `attributes`, or, as in HelpSteer2, beside the text. One that is missing or null is unknown.

    Args:
        row: of the data.
        names: the attributes, in the order of the head's outputs.
        others: gets the names under `attributes` that are not among these.
        by: fields to break results down by.

    Raises:
        RowError: the text is malformed, a rating is no finite number, or none is known.
    """
    text = parse_demonstration(row)
    where, ratings = "", row
    if "attributes" in row:
        where, ratings = "attributes.", row["attributes"]
        if not isinstance(ratings, Mapping):
            raise RowError("attributes", "must be an object of numbers by name")
        others.update(key for key in ratings if key not in names)
    targets = tuple(
        None if ratings.get(name) is None else finite(ratings[name], f"{where}{name}")
        for name in names
    )
    if all(target is None for target in targets):
        raise RowError("attributes", f"has none of {', '.join(names)}")
    return RatedAnswer(text.prompt, text.answer, targets, group_values(row, by), text.inputs)


def squared_error(logits_NK: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """The sum of (prediction - target)² over the targets that are known.

    Args:
        logits_NK: predictions, in float32.
        batch: `targets` [N, K], and `labels` [N, K], `IGNORED` where a target is not known.
    """
    known_NK = batch["labels"] != IGNORED
    error_NK = torch.where(known_NK, logits_NK - batch["targets"], 0.0)
    return error_NK.square().sum(), {}


class AttributeTask(AnswerTask[Floats]):
    """Several numbers of an answer, and their weighted sum."""

    kind = "attributes"
    headline = "rmse"
    tokenwise = False
    settings: AttributeSettings

    def __init__(self, inputs: AnswerInputs, others: tuple[str, ...]) -> None:
        super().__init__(inputs)
        self._others = others
        self.names = list(self.settings.weights)
        self._weights_K = np.array(list(self.settings.weights.values()))
        self._true_NK = target_matrix(inputs.eval.rows)
        for data, rows in ((inputs.train_data, inputs.train), (inputs.eval_data, inputs.eval)):
            self._check_known(data.source, target_matrix(rows.rows))

    def _check_known(self, source: str, labels_NK: Floats) -> None:
        for name, column in zip(self.names, labels_NK.T, strict=True):
            if np.isnan(column).all():
                found = f"; its rows have {', '.join(self._others)} too" if self._others else ""
                raise DataError(f"{source}: no row has the attribute {name!r}{found}")

    def about(self, tokens: TokenizedAnswers) -> list[str]:
        """How many labels there are of each attribute, and how they spread."""
        labels_NK = target_matrix(tokens.rows)
        lines = []
        for name, column in zip(self.names, labels_NK.T, strict=True):
            known = column[~np.isnan(column)]
            lines.append(
                f"{name}: {len(known)} labels from {known.min():g} to {known.max():g}, mean "
                f"{known.mean():.3g}, std {known.std():.3g}"
            )
        if self._others:
            lines.append(f"passed over: {', '.join(self._others)}")
        return lines

    # Training

    @property
    def outputs(self) -> list[str]:
        """Names of the head's outputs."""
        return self.names

    def begin_head(self, model: Any) -> None:
        """Let a new head begin at the attributes' means: it has no bias to learn them by.

        Each row w of the head is moved along the mean h of some hidden states, so that w·h is
        the mean of the attribute. A head that is not a single linear layer is left as it is.
        """
        found = sharing.parts(model)
        head = found[1] if found else None
        if found is None or not isinstance(head, torch.nn.Linear):
            return
        with torch.no_grad():
            some = self.inputs.train.rows[:: max(1, len(self.inputs.train.rows) // 32)][:32]
            h_ND = torch.cat([_hidden(found[0], row) for row in some])
            h_D = h_ND.mean(0)
            means_K = torch.tensor(
                np.nanmean(target_matrix(self.inputs.train.rows), axis=0)
            ).float()
            missing_K = means_K - h_D @ head.weight.T
            head.weight += missing_K[:, None] * h_D / h_D.square().sum()

    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The mean squared error."""
        return squared_error(logits, batch)

    def targets(self, rows: Sequence[TokenizedAnswer]) -> dict[str, Tensor]:
        """Targets, and which of them are known."""
        targets_NK = torch.tensor(target_matrix(rows), dtype=torch.float32)
        known_NK = ~targets_NK.isnan()
        return {"targets": targets_NK.nan_to_num(), "labels": torch.where(known_NK, 0, IGNORED)}

    # Measuring

    def measure(self, model: Any, dtype: str) -> Floats:
        """Predictions for the held-out rows, [N, K]."""
        return self._predicted(model, dtype, self.inputs.eval.rows)

    def _predicted(self, model: Any, dtype: str, rows: Sequence[TokenizedAnswer]) -> Floats:
        return np.concatenate(self.head_outputs(model, dtype, rows))

    def describe_measures(self, found: Floats) -> str:
        """The RMSE."""
        return f"RMSE {self._rmse(found):.3f}"

    def logged(self, found: Floats) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        return {"eval_rmse": self._rmse(found), "eval_loss": self._rmse(found) ** 2}

    def _rmse(self, found: Floats) -> float:
        return math.sqrt(float(np.nanmean((found - self._true_NK) ** 2)))

    def summarise(self, found: Floats) -> dict[str, Any]:
        """All that summary.json says of the held-out rows."""
        score = self._score(found, slice(None))
        attributes = {
            name: regression.regression(found[known, k], self._true_NK[known, k])
            for k, name in enumerate(self.names)
            if len(known := np.flatnonzero(~np.isnan(self._true_NK[:, k])))
        }
        return {
            "rmse": self._rmse(found),
            "attributes": attributes,
            "weights": self.settings.weights,
            "score": score,
            "above_chance": _above_zero(score["pearson"])
            if score["n"]
            else any(_above_zero(part["pearson"]) for part in attributes.values()),
            "subgroups": self.subgroups(lambda places: self._group(found, places)),
        }

    def _score(self, found: Floats, places: Any) -> dict[str, Any]:
        """Correlations of the weighted score, over rows whose weighted attributes are all known."""
        weighed = self._weights_K != 0
        true_NK = self._true_NK[places]
        known = ~np.isnan(true_NK[:, weighed]).any(1)
        weights = self._weights_K[weighed]
        predicted = found[places][known][:, weighed] @ weights
        true = true_NK[known][:, weighed] @ weights
        pearson = regression.correlation(predicted, true) if known.any() else None
        spearman = regression.rank_correlation(predicted, true) if known.any() else None
        return {
            "n": int(known.sum()),
            "pearson": asdict(pearson) if pearson else None,
            "spearman": asdict(spearman) if spearman else None,
        }

    def _group(self, found: Floats, places: list[int]) -> dict[str, Any]:
        """The score's correlation and each attribute's RMSE over the rows of one group."""
        error_NK = (found[places] - self._true_NK[places]) ** 2
        parts = {
            f"{name}_rmse": _rmse_or_none(column[~np.isnan(column)])
            for name, column in zip(self.names, error_NK.T, strict=True)
        }
        return {"n": len(places), "score_pearson": self._score(found, places)["pearson"], **parts}

    def train_scores(self, model: Any, dtype: str, places: Sequence[int]) -> Floats:
        """Weighted scores of training rows."""
        rows = [self.inputs.train.rows[i] for i in places]
        scores: Floats = self._predicted(model, dtype, rows) @ self._weights_K
        return scores

    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: Floats) -> None:
        """The run's pictures."""
        from guerdon.trainer.reward.objectives.plots import draw_attributes

        both = zip(found.T, self._true_NK.T, strict=True)
        draw_attributes(folder, rows, dict(zip(self.names, both, strict=True)))

    def manifest_fields(self) -> dict[str, Any]:
        """Names and weights of the outputs."""
        return {"attributes": self.settings.weights}


def target_matrix(rows: Sequence[TokenizedAnswer]) -> npt.NDArray[np.float64]:
    """The targets [N, K], NaN where one is not known."""
    return np.array([row.targets for row in rows], dtype=np.float64)


def _hidden(decoder: Any, row: TokenizedAnswer) -> Tensor:
    """The last token's hidden state, [1, D]."""
    found: Tensor = decoder(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state
    return found[:, -1].float()


def _above_zero(found: Mapping[str, Any] | None) -> bool:
    return bool(found and found["low"] is not None and found["low"] > 0)


def _rmse_or_none(squared: Floats) -> dict[str, Any] | None:
    return asdict(regression.rmse(squared)) if len(squared) else None
