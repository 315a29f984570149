"""The fine-tuning of RFT: TRL's SFTTrainer over the very tokens that were drawn.

The loss is the mean negative log-likelihood of the completions' tokens (their prompts are
masked), over all tokens of a step: what is long counts for more, as in SFT. Nothing is
tokenised again, and nothing is padded where the model keeps packed sequences apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from guerdon.trainer.errors import DivergedError
from guerdon.trainer.rl.settings import RFTSettings
from guerdon.trainer.rl.types import Sample

IGNORED = -100
"""The label of a token that has no loss."""
_TOLERANCE = 1e-3
"""Nats by which packed sequences may differ from those alone, in float32."""

Report = Callable[[int, int, Mapping[str, float]], None]
"""Told the step, how many there will be, and what was measured, after each step."""

_KEYS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "num_tokens": "sft_tokens",
    "epoch": "epoch",
}
"""Our names for what TRL logs."""


def fine_tune(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    settings: RFTSettings,
    checkpoints: Path,
    report: Report = lambda step, steps, row: None,
) -> int:
    """Train the model on samples, going on from the newest checkpoint; the steps it has made.

    Args:
        model: a language model of `transformers` in float32, LoRA around it or not; changed.
        tokenizer: the policy's; only its padding token is used.
        samples: what was kept, in an order that is the same when the run is resumed.
        settings: of the run.
        checkpoints: TRL's own go there.
        report: told of every step.

    Raises:
        DivergedError: the loss is not a finite number.
    """
    rows = dataset_of(samples)
    packed = keeps_apart(model, rows)
    trainer = CompletionTrainer(
        model=model,
        args=_arguments(settings, rows, checkpoints, packed=packed),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[_Reports(report)],
    )
    trainer.remove_callback(PrinterCallback)
    before = last_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(before) if before else None)
    return int(trainer.state.global_step)


def dataset_of(samples: Sequence[Sample]) -> Dataset:
    """Rows of `input_ids` and `labels`: prompt and completion, and the completion alone."""
    ids = [np.concatenate([s.prompt_ids_P, s.response_ids_T]).tolist() for s in samples]
    labels = [
        [IGNORED] * len(sample.prompt_ids_P) + sample.response_ids_T.tolist() for sample in samples
    ]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def last_checkpoint(folder: Path) -> Path | None:
    """TRL's newest whole checkpoint, or None."""
    whole = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        # trainer_state.json is the last file that transformers writes into one.
        if (path / "trainer_state.json").exists()
    ]
    return max(whole)[1] if whole else None


def micro_batch(batch_size: int, longest: int, most_tokens: int) -> int:
    """Completions in one forward pass: as many as fit, and a divisor of the batch.

    Args:
        batch_size: completions in a step.
        longest: tokens of the longest.
        most_tokens: in one pass; a single completion may have more.
    """
    fit = [
        n for n in range(1, batch_size + 1) if batch_size % n == 0 and n * longest <= most_tokens
    ]
    return max(fit, default=1)


@torch.no_grad()
def keeps_apart(model: Any, rows: Dataset) -> bool:
    """Whether sequences in one row don't see each other, by trying it on two of them.

    What tells them apart is their positions; a model that takes no heed of them would train on
    each completion with a stranger before it.
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows.select(range(min(2, len(rows))))]
    if len(ids) < 2:
        return False
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        positions = torch.cat([torch.arange(len(part)) for part in ids])
        together = _logprobs(model, torch.cat(ids)[None].to(device), positions[None].to(device))
        alone = [_logprobs(model, part[None].to(device)) for part in ids]
    except (TypeError, ValueError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    return bool((together - torch.cat(alone, dim=1)).abs().max() <= _TOLERANCE)


def _logprobs(model: Any, ids_1L: Tensor, positions_1L: Tensor | None = None) -> Tensor:
    logits = model(input_ids=ids_1L, position_ids=positions_1L, use_cache=False).logits
    found: Tensor = logits.float().log_softmax(-1)
    return found


def _arguments(
    settings: RFTSettings, rows: Dataset, checkpoints: Path, *, packed: bool
) -> SFTConfig:
    longest = max(len(ids) for ids in rows["input_ids"])
    size = micro_batch(settings.batch_size, longest, settings.micro_batch_tokens)
    schedule: str = settings.lr_schedule
    if schedule == "constant" and settings.warmup_steps:
        schedule = "constant_with_warmup"
    return SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=settings.batch_size // size,
        learning_rate=settings.lr,
        lr_scheduler_type=schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.dtype == "bfloat16",
        seed=settings.seed,
        full_determinism=False,
        max_length=None,  # the very tokens, never cut
        padding_free=packed and size > 1,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or 1,
        save_total_limit=settings.keep_checkpoints,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's loss, optimiser, checkpoints and resume; stops at the first loss that is no number."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward.

        Raises:
            DivergedError: the loss is not a finite number.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} of fine-tuning: "
                "try a smaller --lr, or --dtype float32"
            )
        return loss

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card for checkpoints: they are for resuming only."""


class _Reports(TrainerCallback):  # type: ignore[misc]
    """Hands on what TRL logs of each step."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Called by the trainer; its closing line of totals is left out."""
        if logs and "loss" in logs:
            row = {ours: float(logs[name]) for name, ours in _KEYS.items() if name in logs}
            self._report(state.global_step, state.max_steps, row)
