"""What training a reward model adds to the recipe, and what an objective gives to that."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from guerdon.models import Manifest, template_hash
from guerdon.trainer.common.data.row_notes import measured_by_group, places_by_group
from guerdon.trainer.common.data.rows import described, hashes_by_source
from guerdon.trainer.common.data.tokens import max_positions
from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.report import show_counts
from guerdon.trainer.common.run_state import rounded, timed_phase
from guerdon.trainer.common.trl.task import FineTuneTask, Measured, TrainingOutcome
from guerdon.trainer.reward.folder import RewardFolder
from guerdon.trainer.reward.inputs import RewardInputs
from guerdon.trainer.reward.settings import RewardModelSettings


class RewardTask(FineTuneTask[Measured, RewardFolder]):
    """An objective with its data, checked; nothing is computed when it is made.

    Args:
        inputs: data, tokenizer and base; the tokenizer's pad token occurs in no sequence.
        train_rows: the training rows that are used, as tokens.
        eval_rows: the held-out rows that are used, as tokens.
        groups: values of the fields of `--by`, of each of `eval_rows`.
    """

    kind: str
    """The manifest's `kind`."""
    headline: str
    """The measure of a run that a single number stands for; a key of `summarise`'s."""
    unit: str = "rows"
    """What the data holds."""
    settings: RewardModelSettings

    def __init__(
        self,
        inputs: RewardInputs[Any, Any],
        train_rows: Sequence[Any],
        eval_rows: Sequence[Any],
        groups: Sequence[Mapping[str, str]],
    ) -> None:
        self.settings = inputs.settings
        self.eval_before = inputs.settings.eval_before
        self.tokenizer = inputs.tokenizer
        self._inputs, self._train_rows, self._eval_rows = inputs, train_rows, eval_rows
        self._groups = places_by_group(inputs.eval_data.source, self.settings.by, groups)
        self.training_set_scores: dict[str, float] = {}
        """Statistics of raw scores over the training set, once they are measured."""

    # Data

    @abc.abstractmethod
    def counts(self) -> dict[str, Any]:
        """Sizes of the data, and all that was left out or looks odd."""

    def show_counts(self, console: Console) -> None:
        """Say how much data there is, and what is odd about it."""
        show_counts(self.counts(), console)

    @property
    def train_described(self) -> str:
        """The training data, for the manifest."""
        return described(self._inputs.train_data)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the training and the held-out data, by their sources."""
        return hashes_by_source(self._inputs.train_data, self._inputs.eval_data)

    # Measuring

    @abc.abstractmethod
    def summarise(self, found: Measured) -> dict[str, Any]:
        """All that summary.json says of the held-out rows; `above_chance` among it."""

    def subgroups(self, of: Callable[[list[int]], dict[str, Any]]) -> dict[str, Any]:
        """What is measured of the rows of each group, by field and value."""
        return measured_by_group(self._groups, of)

    def before(self, found: Measured | None) -> dict[str, Any]:
        """What summary.json says of the model before training; nothing was measured: None."""
        return {"before": None if found is None else self.logged(found)}

    @abc.abstractmethod
    def train_scores(self, model: Any, dtype: str, places: Sequence[int]) -> Floats:
        """The scores that the server would give to these training rows."""

    def measure_more(self, model: Any, seconds: dict[str, float]) -> None:
        """Measure mean and standard deviation of raw scores over the training set, or a sample."""
        with timed_phase(seconds, "statistics"):
            dtype = self.settings.saved_dtype
            scores = self.train_scores(model, dtype, self.statistics_places())
        std = float(scores.std())
        if not std > 0:
            raise DivergedError(
                "all training answers have the same score: the model learned nothing"
            )
        mean = float(scores.mean())
        self.training_set_scores = {"mean": mean, "std": std, "responses": len(scores)}

    def statistics_places(self) -> list[int]:
        """The training rows that the statistics are taken over."""
        count, most = len(self._train_rows), self.settings.stats_pairs
        if count <= most:
            return list(range(count))
        random = np.random.default_rng(self.settings.seed)
        return [int(i) for i in np.sort(random.choice(count, most, replace=False))]

    # The result

    def summary(self, outcome: TrainingOutcome[Measured]) -> dict[str, Any]:
        """What goes into summary.json but for the seconds, which go on."""
        return {
            "objective": self.settings.objective,
            **self.before(outcome.before),
            **self.summarise(outcome.after),
            "data": self.counts(),
            "training_set_scores": self.training_set_scores,
            "steps": outcome.steps,
            "seed": self.settings.seed,
            "parameters": sum(p.numel() for p in outcome.model.parameters()),
            "processes": self.processes.world_size,
        }

    def save(
        self,
        folder: RewardFolder,
        outcome: TrainingOutcome[Measured],
        summary: dict[str, Any],
        seconds: dict[str, float],
    ) -> None:
        """Write the model and the summary, which gets the seconds by phase."""
        summary["seconds"] = rounded(seconds)
        manifest = self.manifest(outcome.model, summary)
        folder.publish(outcome.model, self.tokenizer, manifest, summary)

    @abc.abstractmethod
    def manifest_fields(self) -> dict[str, Any]:
        """Fields of the manifest that only this kind of model has."""

    def manifest(self, model: Any, summary: dict[str, Any]) -> Manifest:
        """What serving needs."""
        statistics = summary["training_set_scores"]
        # --max-length bounds what is trained on. What is served is bounded by the positions alone,
        # unless the model has none that end.
        longest = None
        if max_positions(model.config) is None:
            longest = max(self.settings.max_length, self._inputs.eval.longest)
        return Manifest(
            kind=self.kind,
            mean=statistics["mean"],
            std=statistics["std"],
            template_hash=template_hash(self.tokenizer.chat_template),
            base_model=self.settings.base,
            train_data=self.train_described,
            max_tokens=longest,
            training=self.notes(summary),
            **self.manifest_fields(),
        )

    def notes(self, summary: dict[str, Any]) -> dict[str, Any]:
        """How the model was made, for the manifest."""
        values = asdict(self.settings) | {"lr": self.settings.learning_rate}
        return {
            "settings": {k: v for k, v in values.items() if k not in ("output", "base", "train")},
            self.unit: len(self._train_rows),
            "steps": summary["steps"],
            f"held_out_{self.unit}": len(self._eval_rows),
            f"held_out_{self.headline}": summary[self.headline],
            "statistics_over_responses": summary["training_set_scores"]["responses"],
            "seed": self.settings.seed,
            "versions": summary["versions"],
        }
