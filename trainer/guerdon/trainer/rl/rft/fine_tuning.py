"""The fine-tuning of RFT: TRL's SFTTrainer over the very tokens that were drawn.

The loss is the mean negative log-likelihood of the completions' tokens (their prompts are
masked), over all tokens of a step: what is long counts for more, as in SFT. Nothing is
tokenised again, and nothing is padded where the model keeps packed sequences apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from guerdon.trainer.common.processes import use_gpu
from guerdon.trainer.common.run_folder import last_checkpoint
from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.common.trl.completions import (
    CompletionTrainer,
    completion_dataset,
    keeps_apart,
    micro_batch,
)
from guerdon.trainer.rl.settings import RFTSettings

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
    rows = completion_dataset([sample.completion for sample in samples])
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
        learning_rate=settings.learning_rate,
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
        use_cpu=not use_gpu(),
        dataloader_pin_memory=use_gpu(),
    )


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
