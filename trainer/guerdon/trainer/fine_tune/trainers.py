"""TRL's trainers over token ids that are ready: nothing is rendered, tokenised or cut again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig

from guerdon.trainer.common.language_model import drop_dropout, load_lm, lora_config
from guerdon.trainer.common.processes import ALONE, Processes
from guerdon.trainer.common.trl.completions import (
    IGNORED,
    CompletionTrainer,
    dataset_of,
    keeps_apart,
)
from guerdon.trainer.common.trl.fine_tuning import common_arguments
from guerdon.trainer.common.trl.length_grouped import EpochOrder
from guerdon.trainer.common.trl.pair_mean import PairMean
from guerdon.trainer.fine_tune.inputs import AlignInputs, PairTokens
from guerdon.trainer.fine_tune.memory import keeps_reference
from guerdon.trainer.fine_tune.settings import DPOSettings, ORPOSettings, SFTSettings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # where ORPO lives; our tests watch it
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


def make_trainer(
    model: Any,
    inputs: AlignInputs,
    checkpoints: Path,
    callbacks: Sequence[Any],
    processes: Processes = ALONE,
) -> Any:
    """The trainer of a recipe.

    Args:
        model: in float32; changed in place, and wrapped where LoRA is asked for.
        inputs: of the run.
        checkpoints: where TRL's own go.
        callbacks: of transformers' kind.
        processes: of the run; each makes its trainer.
    """
    settings = inputs.settings
    common: dict[str, Any] = common_arguments(settings, checkpoints, processes) | {
        "bf16": settings.dtype == "bfloat16"
    }
    how: dict[str, Any] = {
        "model": model,
        "processing_class": inputs.tokenizer,
        "callbacks": [*callbacks, EpochOrder()],
    }
    if settings.lora_r:
        alpha = settings.lora_alpha or 0.0
        how["peft_config"] = lora_config(model, settings.lora_r, alpha, settings.lora_dropout)
    rows = inputs.train.rows
    if isinstance(settings, SFTSettings):
        trainer: Any = _sft(model, settings, rows, common, how)
        trainer.processes = processes
        return trainer
    # The reference has no dropout either. TRL's own switch would come after LoRA, and end its too.
    drop_dropout(model)
    common["disable_dropout"] = False
    how |= {"lengths": [row.longest for row in rows], "processes": processes}
    if isinstance(settings, ORPOSettings):
        odds = ORPOConfig(
            **common,
            beta=settings.odds_weight,
            max_length=settings.max_length,
            remove_unused_columns=False,
        )
        return OddsRatioTrainer(args=odds, train_dataset=_for_orpo(rows), **how)
    assert isinstance(settings, DPOSettings)
    direct = DPOConfig(
        **common,
        beta=settings.beta,
        loss_type=[settings.loss],
        max_length=None,
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=settings.precompute_reference,
    )
    reference = None
    if keeps_reference(settings):
        reference = load_lm(inputs.policy).to(next(model.parameters()).device)
    return DirectTrainer(args=direct, ref_model=reference, train_dataset=_for_dpo(rows), **how)


def _sft(
    model: Any, settings: SFTSettings, rows: Any, common: dict[str, Any], how: dict[str, Any]
) -> CompletionTrainer:
    data = dataset_of(rows)
    size = common["per_device_train_batch_size"]
    packed = settings.packing == "auto" and size > 1 and keeps_apart(model, data)
    arguments = SFTConfig(
        **common,
        max_length=None,
        padding_free=packed,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return CompletionTrainer(args=arguments, train_dataset=data, **how)


class DirectTrainer(PairMean, DPOTrainer):  # type: ignore[misc]
    """TRL's loss (eq. 7 of arXiv:2305.18290), metrics, optimiser, checkpoints and resume."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """It is ready."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's numbers, dealt to the processes: its own pass leaves them in a file that only the
        first one finds."""
        reference = self.ref_model or self.model

        def some(places: list[int]) -> list[tuple[float, float]]:
            places_by_length = sorted(places, key=lambda i: -self._lengths[i])
            found: dict[int, tuple[float, float]] = {}
            for at in range(0, len(places), batch_size):
                batch = places_by_length[at : at + batch_size]
                inputs = self._prepare_inputs(self.data_collator([dataset[i] for i in batch]))
                both = [part.tolist() for part in self.compute_ref_log_probs(reference, inputs)]
                found.update(zip(batch, zip(*both, strict=True), strict=True))
            return [found[place] for place in places]

        chosen, rejected = zip(*self.processes.deal(self._lengths, some), strict=True)
        dataset = dataset.add_column("ref_chosen_logps", list(chosen))
        return dataset.add_column("ref_rejected_logps", list(rejected))


class OddsRatioTrainer(PairMean, ORPOTrainer):  # type: ignore[misc]
    """TRL's loss (eq. 6 of arXiv:2403.07691): the likelihood is that of prompt and answer."""

    _tokens_a_pair: float | None = None
    """Tokens of the chosen rows that are predicted, for each pair: of the optimiser step."""

    def pairs_in(self, batch: dict[str, Any]) -> int:
        """Pairs in a micro-batch."""
        return len(batch["chosen_input_ids"])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of an optimiser step, and its pairs; counts its tokens."""
        batches, pairs = super().get_batch_samples(*args, **kwargs)
        tokens = self.processes.gather(sum(_predicted(batch) for batch in batches))
        self._tokens_a_pair = sum(tokens) / pairs if pairs else None
        return batches, pairs

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """It is tokens already."""
        return feature

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """TRL's, with a likelihood that is the mean over the tokens of the optimiser step.

        TRL takes the mean of each micro-batch's own, in which a token weighs more where its rows
        are shorter than others of the step. The micro-batch will be weighed by its share of the
        pairs; what is still missing is how many more tokens than others its pairs have.
        """
        found = super().concatenated_forward(model, batch)
        masks = (batch["chosen_attention_mask"], batch["rejected_attention_mask"])
        self._tokens += int(sum(mask.sum() for mask in masks))
        if self._tokens_a_pair is None:
            return tuple(found)
        share = _predicted(batch) / self.pairs_in(batch) / self._tokens_a_pair
        return (*found[:4], found[4] * share, *found[5:])


def _predicted(batch: dict[str, Any]) -> int:
    """Tokens of the chosen rows of a micro-batch that come after another one."""
    return int(batch["chosen_attention_mask"][:, 1:].sum())


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
