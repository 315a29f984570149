"""What an objective gives to the recipe."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.models import Manifest, template_hash
from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.measures import Floats
from guerdon.trainer.common.processes import ALONE, Processes
from guerdon.trainer.reward.model import max_positions
from guerdon.trainer.reward.settings import RewardModelSettings


class Task(abc.ABC):
    """An objective with its data, checked; nothing is computed when it is made.

    Args:
        settings: of the run.
        base: folder that training begins from.
        tokenizer: with a pad token that occurs in no sequence.
        grow: whether a token was added to it.
    """

    kind: str
    """Of the manifest."""
    headline: str
    """The measure of a run that a single number stands for; a key of `summarise`'s."""
    unit: str = "rows"
    """What the data holds."""
    processes: Processes = ALONE
    """Of the run: all of them load the model, and each trains on and measures a part."""

    def __init__(
        self, settings: RewardModelSettings, base: Path, tokenizer: Any, *, grow: bool
    ) -> None:
        self.settings = settings
        self.base = base
        self.tokenizer = tokenizer
        self.grow = grow

    # Data

    @abc.abstractmethod
    def counts(self) -> dict[str, Any]:
        """Sizes of the data, and all that was left out or looks odd."""

    @property
    @abc.abstractmethod
    def sizes(self) -> tuple[int, int]:
        """How many training and held-out rows there are."""

    @property
    @abc.abstractmethod
    def train_described(self) -> str:
        """The training data, for the manifest."""

    @property
    @abc.abstractmethod
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the training and the held-out data, by their sources."""

    @property
    @abc.abstractmethod
    def longest_eval(self) -> int:
        """Tokens of the longest held-out sequence."""

    # Training

    @abc.abstractmethod
    def load(self) -> Any:
        """The model in float32, ready to be trained, on its device.

        Raises:
            TrainingError: it can't be loaded.
        """

    def settle(self) -> None:  # noqa: B027 - most have nothing to agree on
        """Agree with the other processes on what each found out in `load`; all of them call it."""

    @abc.abstractmethod
    def make_trainer(self, model: Any, checkpoints: Path, callbacks: Sequence[Any]) -> Any:
        """A `transformers` trainer."""

    # Measuring

    @abc.abstractmethod
    def measure(self, model: Any, dtype: str) -> Any:
        """What the model says of the held-out rows.

        Raises:
            DivergedError: a score is not a finite number.
        """

    @abc.abstractmethod
    def words(self, found: Any) -> str:
        """The same in a few words."""

    @abc.abstractmethod
    def logged(self, found: Any) -> dict[str, float]:
        """The numbers of an evaluation in the middle, by their names in metrics.jsonl."""

    @abc.abstractmethod
    def summarise(self, found: Any) -> dict[str, Any]:
        """All that summary.json says of the held-out rows; `above_chance` among it."""

    def before(self, found: Any) -> dict[str, Any]:
        """What summary.json says of the model before training; nothing was measured: None."""
        return {"before": None if found is None else self.logged(found)}

    @abc.abstractmethod
    def train_scores(self, model: Any, dtype: str, places: Sequence[int]) -> Floats:
        """The scores that the server would give to these training rows."""

    @abc.abstractmethod
    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: Any) -> None:
        """The run's pictures."""

    def statistics(self, model: Any, dtype: str) -> dict[str, float]:
        """Mean and standard deviation of raw scores over the training set, or a sample of it."""
        scores = self.train_scores(model, dtype, self.statistics_places())
        std = float(scores.std())
        if not std > 0:
            raise DivergedError(
                "all training answers have the same score: the model learned nothing"
            )
        return {"mean": float(scores.mean()), "std": std, "responses": len(scores)}

    def statistics_places(self) -> list[int]:
        """The training rows that the statistics are taken over."""
        count, most = self.sizes[0], self.settings.stats_pairs
        if count <= most:
            return list(range(count))
        random = np.random.default_rng(self.settings.seed)
        return [int(i) for i in np.sort(random.choice(count, most, replace=False))]

    # What is left behind

    @abc.abstractmethod
    def manifest_fields(self) -> dict[str, Any]:
        """Of the kind alone."""

    def manifest(self, model: Any, summary: dict[str, Any]) -> Manifest:
        """What serving needs."""
        statistics = summary["training_set_scores"]
        # --max-length bounds what is trained on. What is served is bounded by the positions alone,
        # unless the model has none that end.
        longest = None
        if max_positions(model) is None:
            longest = max(self.settings.max_length, self.longest_eval)
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
            self.unit: self.sizes[0],
            "steps": summary["steps"],
            f"held_out_{self.unit}": self.sizes[1],
            f"held_out_{self.headline}": summary[self.headline],
            "statistics_over_responses": summary["training_set_scores"]["responses"],
            "seed": self.settings.seed,
            "versions": summary["versions"],
        }
