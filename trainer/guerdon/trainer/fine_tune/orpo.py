"""ORPO: likelihood and odds of preference pairs, without a reference."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from guerdon.trainer.common.trl.completions import IGNORED
from guerdon.trainer.common.trl.mixins import MeanOverPairs
from guerdon.trainer.fine_tune.inputs import PairTokens
from guerdon.trainer.fine_tune.pairs import PairTask
from guerdon.trainer.fine_tune.settings import ORPOSettings

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # where ORPO lives; our tests watch it
from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class ORPOTask(PairTask):
    """Preference pairs, learned without a reference."""

    all_logits = True
    settings: ORPOSettings

    def trainer(
        self, model: Any, arguments: dict[str, Any], more: dict[str, Any]
    ) -> OddsRatioTrainer:
        """TRL's trainer."""
        self.prepare(model, arguments, more)
        config = ORPOConfig(
            **arguments,
            beta=self.settings.odds_weight,
            max_length=self.settings.max_length,
            remove_unused_columns=False,
        )
        data = _dataset(self.inputs.train.rows)
        return OddsRatioTrainer(args=config, train_dataset=data, **more)


class OddsRatioTrainer(MeanOverPairs, ORPOTrainer):  # type: ignore[misc]
    """TRL's loss (eq. 6 of arXiv:2403.07691): the likelihood is that of prompt and answer."""

    _tokens_a_pair: float | None = None
    """Tokens of the chosen rows that are predicted, for each pair: of the optimiser step."""

    def pairs_in(self, batch: dict[str, Any]) -> int:
        """Pairs in a micro-batch."""
        return len(batch["chosen_input_ids"])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of an optimiser step, and its pairs; counts its tokens."""
        batches, pairs = super().get_batch_samples(*args, **kwargs)
        tokens = self.processes.all_gather(sum(_predicted(batch) for batch in batches))
        self._tokens_a_pair = sum(tokens) / pairs if pairs else None
        return batches, pairs

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """The row as it is: tokens already."""
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


def _dataset(rows: Sequence[PairTokens]) -> Dataset:
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
