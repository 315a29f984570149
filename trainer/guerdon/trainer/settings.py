"""The settings of a reward-model training run, from a TOML file and the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guerdon.trainer import settings_io
from guerdon.trainer.errors import SettingsError

_POSITIVE = ("epochs", "batch_size", "max_length", "accumulate", "log_every", "stats_pairs")
_NOT_NEGATIVE = (
    "lora_r", "lora_dropout", "center", "limit", "eval_limit", "warmup", "weight_decay",
    "checkpoint_every", "eval_every", "seed", "freeze_layers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """Every key of `config.toml`; the command line has an option of the same name for each."""

    base: str
    """Folder, hub name or embedded model to begin from."""
    train: str
    """JSONL file (gzipped or not), or the name or folder of a data set of `datasets`."""
    eval: str
    """The same, for the held-out pairs."""
    output: str
    """Folder of the run; in the end it is the model's folder too."""

    train_split: str = "train"
    """Split of a `datasets` data set; files have none."""
    eval_split: str = "test"
    """The same for the held-out pairs."""
    chat_template: str = ""
    """Jinja file that replaces the base's chat template; empty keeps the base's."""
    limit: int = 0
    """Train on the first so many pairs only; 0 takes all."""
    eval_limit: int = 0
    """The same for the held-out pairs."""
    max_length: int = 1024
    """Tokens of the longest sequence, prompt and answer."""
    too_long: Literal["drop", "error"] = "drop"
    """drop leaves pairs over max_length out and counts them, error stops."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """stop at the first malformed row, or skip them and count."""

    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 8
    """Pairs in a step on one device, before accumulation."""
    accumulate: int = 1
    """Batches in an optimiser step."""
    lr: float | None = None
    """Peak learning rate; by default 3e-5, and 2e-4 for LoRA."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; then it falls as a cosine."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradient clipping, by the norm over all weights."""
    center: float = 0.01
    """Weight of the penalty on (r₊ + r₋)², which keeps rewards around zero (arXiv:2312.09244)."""
    freeze_layers: int = 0
    """Keep the embeddings and the lowest so many layers as they are."""
    lora_r: int = 0
    """Rank of LoRA; 0 trains all weights."""
    lora_alpha: float | None = None
    """By default twice the rank."""
    lora_dropout: float = 0.0
    """Of LoRA."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the computation; weights and optimiser are in float32 either way."""
    save_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the saved weights, and of the final measurements. `auto` is `dtype`: what was trained
    is the function of weights rounded to that, and small updates that rounding undid come
    back, unmeasured, in a wider type."""
    share_prompts: Literal["auto", "on", "off"] = "auto"
    """Compute what both answers of a pair share once: `auto` when a probe shows equal scores."""
    seed: int = 0
    """Of the new head, the order and dropout."""

    log_every: int = 5
    """Steps between lines in metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations on the held-out pairs; 0 evaluates before and after only."""
    eval_before: bool = True
    """Evaluate before training too."""
    checkpoint_every: int = 100
    """Steps between checkpoints for `--resume`; 0 writes none."""
    keep_checkpoints: bool = False
    """Keep the last one after the run ends well."""
    stats_pairs: int = 1000
    """Most training pairs that are scored for the mean and std of the manifest."""
    plots: bool = True
    """Draw plots/*.png at the end."""

    def __post_init__(self) -> None:
        """Refuse values that can't be, naming the key."""
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}, it must be positive")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}, it must not be negative")
        for name in ("warmup", "lora_dropout"):
            if not getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, it must be under 1")
        if not 0 < self.learning_rate < math.inf:
            raise SettingsError(f"lr is {self.lr}, it must be a positive number")

    @property
    def learning_rate(self) -> float:
        """The peak learning rate, chosen or by default."""
        if self.lr is not None:
            return self.lr
        return 2e-4 if self.lora_r else 3e-5

    @property
    def saved_dtype(self) -> str:
        """`save_dtype`, resolved."""
        return self.dtype if self.save_dtype == "auto" else self.save_dtype

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
