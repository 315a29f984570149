"""TRL's trainers over token ids that are ready: nothing is rendered, tokenised or cut again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler
from trl import DPOConfig, DPOTrainer, SFTConfig

from guerdon.trainer.align.inputs import AlignInputs, PairTokens
from guerdon.trainer.align.settings import DPOSettings, ORPOSettings, SFTSettings
from guerdon.trainer.completions import IGNORED, CompletionTrainer, dataset_of, keeps_apart
from guerdon.trainer.fine_tuning import common_arguments
from guerdon.trainer.language_model import load_lm, lora_config
from guerdon.trainer.length_grouped import LengthGrouped
from guerdon.trainer.watched import Watched

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # where ORPO lives; our tests watch it
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


def make_trainer(
    model: Any, inputs: AlignInputs, checkpoints: Path, callbacks: Sequence[Any]
) -> Any:
    """The trainer of a recipe.

    Args:
        model: in float32; changed in place, and wrapped where LoRA is asked for.
        inputs: of the run.
        checkpoints: where TRL's own go.
        callbacks: of transformers' kind.
    """
    settings = inputs.settings
    common: dict[str, Any] = common_arguments(settings, checkpoints) | {
        "bf16": settings.dtype == "bfloat16"
    }
    how: dict[str, Any] = {
        "model": model, "processing_class": inputs.tokenizer, "callbacks": list(callbacks),
    }  # fmt: skip
    if settings.lora_r:
        alpha = settings.lora_alpha or 0.0
        how["peft_config"] = lora_config(model, settings.lora_r, alpha, settings.lora_dropout)
    rows = inputs.train.rows
    if isinstance(settings, SFTSettings):
        data = dataset_of(rows)
        packed = settings.packing == "auto" and settings.batch_size > 1 and keeps_apart(model, data)
        arguments = SFTConfig(
            **common, max_length=None, padding_free=packed,
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        return CompletionTrainer(args=arguments, train_dataset=data, **how)
    lengths = [row.longest for row in rows]
    if isinstance(settings, ORPOSettings):
        odds = ORPOConfig(
            **common, beta=settings.odds_weight, max_length=settings.max_length,
            remove_unused_columns=False,
        )  # fmt: skip
        return OddsRatioTrainer(lengths, args=odds, train_dataset=_for_orpo(rows), **how)
    assert isinstance(settings, DPOSettings)
    direct = DPOConfig(
        **common, beta=settings.beta, loss_type=[settings.loss], max_length=None,
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=settings.precompute_reference,
    )  # fmt: skip
    alone = settings.lora_r or settings.precompute_reference
    reference = None if alone else load_lm(inputs.policy).to(next(model.parameters()).device)
    return DirectTrainer(
        lengths, args=direct, ref_model=reference, train_dataset=_for_dpo(rows), **how
    )


class _Grouped(Watched):
    """Takes like lengths together, by the same order in a resumed run."""

    def __init__(self, lengths: Sequence[int], **kwargs: Any) -> None:
        self._lengths = lengths
        super().__init__(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        ours: Any = self
        return LengthGrouped(self._lengths, ours.args.train_batch_size, seed=ours.args.seed)


class DirectTrainer(_Grouped, DPOTrainer):  # type: ignore[misc]
    """TRL's loss (eq. 7 of arXiv:2305.18290), metrics, optimiser, checkpoints and resume."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """It is ready."""
        return dataset


class OddsRatioTrainer(_Grouped, ORPOTrainer):  # type: ignore[misc]
    """TRL's loss (eq. 6 of arXiv:2403.07691): the likelihood is that of prompt and answer."""

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """It is tokens already."""
        return feature


def _for_dpo(rows: Sequence[PairTokens]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [list(row.prompt) for row in rows],
            "chosen_ids": [list(row.chosen) for row in rows],
            "rejected_ids": [list(row.rejected) for row in rows],
            "prompt": [""] * len(rows),
        }
    )


def _for_orpo(rows: Sequence[PairTokens]) -> Dataset:
    def columns(answer: str) -> dict[str, list[list[int]]]:
        answers = [list(getattr(row, answer)) for row in rows]
        whole = [[*row.prompt, *ids] for row, ids in zip(rows, answers, strict=True)]
        return {
            f"{answer}_input_ids": whole,
            f"{answer}_attention_mask": [[1] * len(ids) for ids in whole],
            f"{answer}_labels": [
                [IGNORED] * len(row.prompt) + ids for row, ids in zip(rows, answers, strict=True)
            ],
        }

    return Dataset.from_dict(columns("chosen") | columns("rejected"))
