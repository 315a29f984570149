"""Settings of fine-tuning on files: what reward models, SFT, DPO and ORPO have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from guerdon.settings import not_negative, positive, refuse_idle
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.learning_rate import LearningRate
from guerdon.trainer.common.processes import settle_dtype


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings(LearningRate):
    """Every field is a key of `config.toml` and an option of the command line."""

    algorithm: ClassVar[str] = ""
    default_lr: ClassVar[float] = 3e-5
    default_lora_lr: ClassVar[float] = 2e-4

    train: str
    """JSON Lines, JSON array (gzipped or not) or Parquet file, a `datasets` data set, or
    helpful-train, the project's own pairs."""
    eval: str
    """Held-out data, in a form that the data to train on may have; helpful-eval are the project's
    own pairs."""
    output: str
    """Folder of the run."""

    train_split: str = "train"
    """Split of a `datasets` data set; files have none."""
    eval_split: str = "test"
    """Split of the held-out data, where they are a `datasets` data set."""
    chat_template: str = ""
    """Jinja file that replaces the model's chat template; empty keeps it."""
    limit: int = 0
    """Train on the first so many rows only; 0 takes all."""
    eval_limit: int = 0
    """Most held-out rows; 0 takes all."""
    max_length: int = 1024
    """Tokens of the longest sequence, prompt and answer."""
    too_long: Literal["drop", "error"] = "drop"
    """drop leaves rows over max_length out and counts them, error stops."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """stop at the first malformed row, or skip them, count them and name their lines."""

    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 8
    """Rows in a batch, over all processes."""
    accumulate: int = 1
    """Batches in an optimiser step."""
    lr: float | None = None
    """Peak learning rate."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises; then it falls as a cosine."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradient clipping, by the norm over all weights."""
    lora_r: int = 0
    """Rank of LoRA; 0 trains all weights."""
    lora_alpha: float | None = None
    """LoRA's α; by default twice the rank."""
    lora_dropout: float = 0.0
    """Dropout of LoRA's updates while they are trained. The model's own dropout is off, but for
    sft."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the computation; weights and optimiser are in float32 either way. auto is bfloat16
    on a GPU and on processors that multiply in it, else float32."""
    save_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the saved weights, and of the final measurements. `auto` is `dtype`: what was
    trained is the function of weights rounded to that, and small updates that rounding undid come
    back, unmeasured, in a wider type."""
    seed: int = 0
    """Seed of new weights, the order and dropout."""

    log_every: int = 5
    """Steps between lines in metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations on what is held out; 0 evaluates before and after only."""
    by: tuple[str, ...] = ()
    """Break the held-out measures down by the values of this field of the rows; repeatable."""
    checkpoint_every: int = 100
    """Steps between checkpoints for `--resume`; 0 writes none."""
    keep_checkpoints: bool = False
    """Keep the last one after the run ends well."""
    tracker: tuple[str, ...] = ()
    """tensorboard or wandb, beside metrics.jsonl. Repeatable; installed separately."""
    plots: bool = True
    """Draw plots/*.png at the end."""

    def __post_init__(self) -> None:
        positive(self, "epochs", "batch_size", "max_length", "accumulate", "log_every")
        not_negative(self, "lora_r", "lora_dropout", "limit", "eval_limit", "warmup")
        not_negative(self, "weight_decay", "checkpoint_every", "eval_every", "seed")
        not_negative(self, "max_grad_norm")
        for name in ("warmup", "lora_dropout"):
            if not getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, it must be under 1")
        for i, name in enumerate(self.by):
            if not name or name in self.by[:i]:
                raise SettingsError(f"by names {name!r} {'twice' if name else ''}".rstrip())
        refuse_idle(
            self, ("lora_alpha", "lora_dropout"), used=self.lora_r, because="without lora_r"
        )
        refuse_idle(
            self,
            ("keep_checkpoints",),
            used=self.checkpoint_every,
            because="where checkpoint_every is 0",
        )
        if not 0 < self.learning_rate < math.inf:
            raise SettingsError(f"lr is {self.lr}, it must be a positive number")
        settle_dtype(self)

    @property
    def saved_dtype(self) -> str:
        """`save_dtype`, resolved."""
        return self.dtype if self.save_dtype == "auto" else self.save_dtype
