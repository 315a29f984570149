"""The settings of a reward-model training run, from a TOML file and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from guerdon.trainer import settings_io
from guerdon.trainer.fine_tune_settings import FineTuneSettings


@dataclass(frozen=True, kw_only=True)
class RewardSettings(FineTuneSettings):
    """Every key of `config.toml`; the command line has an option of the same name for each."""

    _positive: ClassVar[tuple[str, ...]] = (*FineTuneSettings._positive, "stats_pairs")
    _not_negative: ClassVar[tuple[str, ...]] = (
        *FineTuneSettings._not_negative, "center", "freeze_layers",
    )  # fmt: skip

    base: str
    """Folder, hub name or embedded model to begin from."""
    output: str
    """Folder of the run; in the end it is the model's folder too."""
    lr: float | None = None
    """Peak learning rate; by default 3e-5, and 2e-4 for LoRA."""
    center: float = 0.01
    """Weight of the penalty on (r₊ + r₋)², which keeps rewards around zero (arXiv:2312.09244)."""
    freeze_layers: int = 0
    """Keep the embeddings and the lowest so many layers as they are."""
    share_prompts: Literal["auto", "on", "off"] = "auto"
    """Compute what both answers of a pair share once: `auto` when a probe shows equal scores."""
    eval_before: bool = True
    """Evaluate before training too."""
    stats_pairs: int = 1000
    """Most training pairs that are scored for the mean and std of the manifest."""

    def to_toml(self) -> str:
        """The settings as TOML; keys whose value is None are left out."""
        return settings_io.to_toml(self)


def load_settings(config: Path | None, overrides: Mapping[str, Any]) -> RewardSettings:
    """The settings of a TOML file with the command line's values over them.

    Args:
        config: the file, or None.
        overrides: what was given on the command line; None means not given.

    Raises:
        SettingsError: the file can't be read, or a key or a value is wrong.
    """
    return settings_io.load(RewardSettings, config, overrides)
