"""Preference pairs.

Bradley-Terry: the chosen answer is preferred with probability σ(r₊ - r₋), and the loss is
the negative log-likelihood of that (Ouyang et al. 2022, arXiv:2203.02155, eq. 1), with a margin
that of σ(r₊ - r₋ - m) (Touvron et al. 2023, arXiv:2307.09288, eq. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import set_seed
from trl import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from guerdon.trainer.common.data.same_prompts import prompt_numbers
from guerdon.trainer.common.data.tokens import TokenPair, TokenPairs
from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.measuring import measures
from guerdon.trainer.common.measuring.measures import Floats, Ints
from guerdon.trainer.common.trl.mixins import EpochOrder
from guerdon.trainer.common.trl.task import trainer_arguments
from guerdon.trainer.reward import shared_prefix as sharing
from guerdon.trainer.reward.inputs import PairInputs
from guerdon.trainer.reward.model import load_base, prepare
from guerdon.trainer.reward.objectives.task import RewardTask
from guerdon.trainer.reward.pair_trainer import PairTrainer, shared_collator
from guerdon.trainer.reward.scoring import PairScores, score_pairs
from guerdon.trainer.reward.settings import RewardSettings


class PreferenceTask(RewardTask[PairScores]):
    """The better and the worse of two answers, by TRL's `RewardTrainer`."""

    kind = "sequence"
    headline = "accuracy"
    unit = "pairs"
    settings: RewardSettings

    def __init__(self, inputs: PairInputs) -> None:
        groups = [inputs.eval_data.groups[pair.row] for pair in inputs.eval.pairs]
        super().__init__(inputs, inputs.train.pairs, inputs.eval.pairs, groups)
        self.inputs = inputs
        self.share = False
        """Whether pairs are computed in one row each; known when the model is loaded."""
        self.prompts = prompt_numbers(inputs.eval_data.rows[p.row] for p in inputs.eval.pairs)
        """The prompt of each held-out pair; equal numbers are one prompt."""

    def counts(self) -> dict[str, Any]:
        """Sizes of the data, and all that was left out or looks odd."""
        return self.inputs.counts()

    # Training

    def load(self) -> Any:
        """The model, ready to be trained; decides whether pairs share their prompts."""
        set_seed(self.settings.seed)  # the new head is random
        model = load_base(self.inputs.base, self.tokenizer, grow=self.inputs.grow)
        self.share = self.decide_sharing(model)
        return prepare(model, self.settings).to(self.processes.device())

    def decide_sharing(self, model: Any) -> bool:
        """Whether pairs are computed in one row each; never without a probe that agreed."""
        if self.settings.share_prompts == "off":
            return False
        probes = self.inputs.train.pairs[:2] + self.inputs.eval.pairs[:1]
        pad_id = self.tokenizer.pad_token_id
        if sharing.may_share(model) and sharing.agrees(model, probes, pad_id):
            return True
        if self.settings.share_prompts == "on":
            raise TrainingError(
                "share_prompts is on, but this model's scores differ when prompts are shared"
            )
        return False

    def settle(self) -> None:
        """Prompts are shared in all processes or in none."""
        self.share = not self.processes.any_rank(not self.share)

    def make_trainer(self, model: Any, checkpoints: Path, callbacks: Sequence[Any]) -> PairTrainer:
        """TRL's, over token ids."""
        settings, share, pad_id = self.settings, self.share, self.tokenizer.pad_token_id
        pairs, margins = self.inputs.train.pairs, self.inputs.train_data.margins
        columns: dict[str, list[Any]] = {
            "chosen_ids": [p.chosen for p in pairs],
            "rejected_ids": [p.rejected for p in pairs],
        }
        if margins:
            columns["margin"] = [margins[p.row] for p in pairs]
        return PairTrainer(
            share=share,
            compute_dtype=settings.dtype,
            processes=self.processes,
            lengths=[len(p.chosen) + len(p.rejected) - (p.shared if share else 0) for p in pairs],
            model=model,
            args=RewardConfig(
                **trainer_arguments(settings, checkpoints, self.processes),
                bf16=False,  # `PairTrainer` casts itself, and keeps the head in float32
                center_rewards_coefficient=settings.center or None,
                max_length=None,  # the pairs were filtered, and counted, before
                disable_dropout=False,  # it is off (`prepare`), but for LoRA's where that is asked
            ),
            train_dataset=Dataset.from_dict(columns),
            processing_class=self.tokenizer,
            data_collator=shared_collator(pad_id) if share else DataCollatorForPreference(pad_id),
            callbacks=[*callbacks, EpochOrder()],
        )

    # Measuring

    def measure(self, model: Any, dtype: str) -> PairScores:
        """Scores of the held-out pairs."""
        return self._scores(model, dtype, self.inputs.eval.pairs)

    def _scores(self, model: Any, dtype: str, pairs: Sequence[TokenPair]) -> PairScores:
        return score_pairs(
            model,
            pairs,
            pad_id=self.tokenizer.pad_token_id,
            share=self.share,
            dtype=dtype,
            processes=self.processes,
        )

    def describe_measures(self, found: PairScores) -> str:
        """The accuracy."""
        return f"accuracy {measures.accuracy(found.delta).value:.3f}"

    def logged(self, found: PairScores) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        loss = measures.calibration(found.delta).log_loss
        return {"eval_accuracy": measures.accuracy(found.delta).value, "eval_loss": loss}

    def before(self, found: PairScores | None) -> dict[str, Any]:
        """The accuracy before training."""
        value = None if found is None else measures.accuracy(found.delta).value
        return {"accuracy_before": value}

    def summarise(self, found: PairScores) -> dict[str, Any]:
        """All that summary.json says of the held-out pairs."""
        chosen, rejected = answer_tokens(self.inputs.eval)
        held_out = measures.accuracy(found.delta, self.prompts)
        warmth = measures.temperature(found.delta)
        return {
            "accuracy": held_out.value,
            "accuracy_low": held_out.low,
            "accuracy_high": held_out.high,
            "above_chance": held_out.low > 0.5,
            "ties": int((found.delta == 0).sum()),
            "mean_margin": float(found.delta.mean()),
            "calibration": asdict(measures.calibration(found.delta)),
            "temperature": asdict(warmth) if warmth else None,
            "length_bias": asdict(
                measures.length_bias(found.chosen, found.rejected, chosen, rejected, self.prompts)
            ),
            "subgroups": self.subgroups(
                lambda places: group_measures(found.delta[places], self.prompts[places])
            ),
            "shared_prompts": self.share,
        }

    def train_scores(self, model: Any, dtype: str, places: Sequence[int]) -> Floats:
        """Raw scores of both answers."""
        pairs = self.inputs.train.pairs
        return self._scores(model, dtype, [pairs[i] for i in places]).all

    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: PairScores) -> None:
        """The run's pictures."""
        from guerdon.trainer.reward.plots import draw_all

        chosen, rejected = answer_tokens(self.inputs.eval)
        draw_all(
            folder,
            rows=rows,
            scores=found,
            chosen_tokens=chosen,
            rejected_tokens=rejected,
            calibration=measures.calibration(found.delta),
        )

    def manifest_fields(self) -> dict[str, Any]:
        """A sequence model needs no more."""
        return {}


def group_measures(delta: Floats, prompts: Ints) -> dict[str, Any]:
    """Accuracy and calibration of the pairs of one group."""
    found = asdict(measures.calibration(delta))
    found.pop("bins")
    return {"n": len(delta), "accuracy": asdict(measures.accuracy(delta, prompts)), **found}


def answer_tokens(tokens: TokenPairs) -> tuple[Floats, Floats]:
    """Lengths of the chosen and of the rejected answers."""
    return (
        np.array([p.chosen_answer for p in tokens.pairs], dtype=np.float64),
        np.array([p.rejected_answer for p in tokens.pairs], dtype=np.float64),
    )
