"""The settings of `guerdon train reward`, from a TOML file and the command line.

There is a class for each objective, so that a setting which an objective would ignore is an
error; `AllSettings` is their union, for the command line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from guerdon.settings import build, field_types, given, not_negative, positive, typed
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.trl.settings import FineTuneSettings

Objective = Literal["preference", "attributes", "process"]


@dataclass(frozen=True, kw_only=True)
class RewardModelSettings(FineTuneSettings):
    """What every objective has. Every field is a key of `config.toml` and an option."""

    algorithm: ClassVar[str] = "reward"

    objective: Objective
    """What is learned: preference (pairs, Bradley-Terry), attributes (ratings of an answer, by
    regression) or process (which steps of a solution are right)."""
    base: str
    """Folder, hub name or embedded model to begin from."""
    output: str
    """Folder of the run; in the end it is the model's folder too."""
    freeze_layers: int = 0
    """Keep the embeddings and the lowest so many layers as they are."""
    eval_before: bool = True
    """Evaluate before training too."""
    stats_pairs: int = 1000
    """Most training pairs (or rows) that are scored for the mean and std of the manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "stats_pairs")
        not_negative(self, "freeze_layers")


@dataclass(frozen=True, kw_only=True)
class RewardSettings(RewardModelSettings):
    """Preference pairs, Bradley-Terry; perhaps several models of them."""

    objective: Literal["preference"] = "preference"
    center: float = 0.01
    """Weight of the penalty on (r₊ + r₋)², which keeps rewards around zero (arXiv:2312.09244);
    TRL's center_rewards_coefficient."""
    margin_key: str = ""
    """Field of the training rows that holds by how much the better answer is better, a number
    not below 0: the loss is then -log σ(r₊ - r₋ - margin) (arXiv:2307.09288, eq. 2). Empty uses
    no margins."""
    share_prompts: Literal["auto", "on", "off"] = "auto"
    """Compute what both answers of a pair share once: `auto` when a probe shows equal scores."""
    ensemble: int = 0
    """Train so many models, with the seeds from `seed` on, and serve them as one; 0 trains one."""
    aggregation: Literal["mean", "min", "mean_minus_std"] = "mean"
    """How an ensemble's scores become one (arXiv:2310.02743)."""
    std_weight: float = 1.0
    """λ of mean_minus_std: the score is mean - λ·std of the members."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "center", "ensemble")
        if self.ensemble == 1:
            raise SettingsError("ensemble is 1, it must be 0 (a single model) or at least 2")
        if not self.ensemble and self.aggregation != "mean":
            raise SettingsError("aggregation is for an ensemble: give --ensemble too")
        if self.aggregation != "mean_minus_std" and self.std_weight != 1.0:
            raise SettingsError("std_weight is for --aggregation mean_minus_std only")
        if not 0 <= self.std_weight < float("inf"):
            raise SettingsError(f"std_weight is {self.std_weight}, it must be a number from 0 on")


@dataclass(frozen=True, kw_only=True)
class AttributeSettings(RewardModelSettings):
    """Ratings of an answer by attributes: regression."""

    objective: Literal["attributes"] = "attributes"
    attribute: tuple[str, ...] = ()
    """NAME=WEIGHT: an attribute to learn, and its weight in the final score; repeatable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attribute:
            raise SettingsError("attribute is missing: give --attribute NAME=WEIGHT for each")
        weights = self.weights
        if not any(weights.values()):
            raise SettingsError("attribute: every weight is 0, so every score would be")

    @property
    def weights(self) -> dict[str, float]:
        """Name to weight, in the order of the head's outputs."""
        return _weights("attribute", self.attribute)


@dataclass(frozen=True, kw_only=True)
class ProcessSettings(RewardModelSettings):
    """Right and wrong steps of a solution."""

    objective: Literal["process"] = "process"
    step_marker: str = "<|step|>"
    """The token that ends each step, where its score is read; one that the tokenizer lacks is
    added to it."""
    step_aggregation: Literal["min", "mean", "last", "product"] = "min"
    """How the scores of the steps become the solution's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_marker:
            raise SettingsError("step_marker is empty")


@dataclass(frozen=True, kw_only=True)
class AllSettings(RewardSettings, AttributeSettings, ProcessSettings):
    """The union of the objectives' settings, for the options of the command; never made."""

    objective: Objective = "preference"  # type: ignore[assignment]
    """What is learned: preference (pairs, Bradley-Terry), attributes (ratings of an answer, by
    regression) or process (which steps of a solution are right)."""


OBJECTIVES: dict[str, type[RewardModelSettings]] = {
    "preference": RewardSettings,
    "attributes": AttributeSettings,
    "process": ProcessSettings,
}


def load_settings(config: Path | None, overrides: Mapping[str, Any]) -> RewardModelSettings:
    """The settings of a TOML file with the command line's values over them.

    Args:
        config: the file, or None.
        overrides: what was given on the command line; None means not given.

    Raises:
        SettingsError: the file can't be read, a key or a value is wrong, or a key belongs to
            another objective.
    """
    values = given(config, overrides)
    name = typed("objective", values.get("objective", "preference"), Objective)
    kind = OBJECTIVES[name]
    for key in values:
        owners = [other for other, owner in OBJECTIVES.items() if key in field_types(owner)]
        if owners and name not in owners:
            raise SettingsError(
                f"{key} is a setting of --objective {owners[0]}, and this is {name}"
            )
    return build(kind, values)


def _weights(key: str, entries: Sequence[str]) -> dict[str, float]:
    """Name to weight, in the order given.

    Args:
        key: the setting's name, for the message.
        entries: each `NAME=WEIGHT`.

    Raises:
        SettingsError: an entry is not of that form, a weight is not a finite number, or a name
            is given twice.
    """
    found: dict[str, float] = {}
    for entry in entries:
        name, mark, text = entry.rpartition("=")
        name = name.strip()
        if not mark or not name:
            raise SettingsError(f"{key} is {entry!r}, it must be NAME=WEIGHT")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise SettingsError(f"{key} is {entry!r}, and {text!r} is not a finite number")
        if name in found:
            raise SettingsError(f"{key} names {name!r} twice")
        found[name] = weight
    return found
