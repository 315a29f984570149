"""What attributes and process rewards have in common: single answers, a head of several outputs."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainingArguments, set_seed

from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.trl.mixins import EpochOrder
from guerdon.trainer.common.trl.task import Measured, trainer_arguments
from guerdon.trainer.reward.model import load_with_head, prepare
from guerdon.trainer.reward.objectives.answer_trainer import AnswerTrainer, answer_outputs
from guerdon.trainer.reward.objectives.rated_answers import (
    AnswerInputs,
    TokenizedAnswer,
    TokenizedAnswers,
)
from guerdon.trainer.reward.objectives.task import RewardTask


class AnswerTask(RewardTask[Measured]):
    """A task over single answers."""

    tokenwise: bool
    """Whether the head reads every token, not the last one alone."""

    def __init__(self, inputs: AnswerInputs) -> None:
        groups = [inputs.eval_data.rows[row.row].groups for row in inputs.eval.rows]
        super().__init__(inputs, inputs.train.rows, inputs.eval.rows, groups)
        self.inputs = inputs

    # Data

    @abc.abstractmethod
    def about(self, tokens: TokenizedAnswers) -> list[str]:
        """Lines on what the targets are."""

    def counts(self) -> dict[str, Any]:
        """Sizes of the data, and all that was left out or looks odd."""
        return self.inputs.counts(self.about)

    # Training

    @property
    @abc.abstractmethod
    def outputs(self) -> Sequence[str]:
        """Names of the head's outputs."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the loss over all targets of a batch, and metrics to log."""

    @abc.abstractmethod
    def targets(self, rows: Sequence[TokenizedAnswer]) -> dict[str, Tensor]:
        """`labels`, and what else the loss reads."""

    def begin_head(self, model: Any) -> None:
        """Make the best of a new head before training."""

    def load(self) -> Any:
        """The model, ready to be trained."""
        set_seed(self.settings.seed)  # the new head is random
        model, new = load_with_head(
            self.inputs.base,
            self.tokenizer,
            grow=self.inputs.grow,
            outputs=self.outputs,
            tokenwise=self.tokenwise,
        )
        if new:
            self.begin_head(model.eval())
        return prepare(model, self.settings).to(self.processes.device())

    def make_trainer(
        self, model: Any, checkpoints: Path, callbacks: Sequence[Any]
    ) -> AnswerTrainer:
        """The trainer over token ids."""
        arguments = TrainingArguments(
            **trainer_arguments(self.settings, checkpoints, self.processes),
            bf16=False,  # `AnswerTrainer` casts itself, and keeps the head in float32
            remove_unused_columns=False,
        )
        return AnswerTrainer(
            model=model,
            args=arguments,
            loss=self.loss,
            targets=self.targets,
            rows=self.inputs.train.rows,
            pad_id=self.tokenizer.pad_token_id,
            compute_dtype=self.settings.dtype,
            processing_class=self.tokenizer,
            processes=self.processes,
            callbacks=[*callbacks, EpochOrder()],
        )

    # Measuring

    def head_outputs(self, model: Any, dtype: str, rows: Sequence[TokenizedAnswer]) -> list[Floats]:
        """The head's outputs for each row, of shape [places, K].

        Raises:
            DivergedError: one is not a finite number.
        """
        return answer_outputs(
            model, rows, pad_id=self.tokenizer.pad_token_id, dtype=dtype, processes=self.processes
        )
