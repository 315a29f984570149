"""DPO: preference pairs against a frozen reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from guerdon.trainer.common.models.implicit_manifest import leave_reward
from guerdon.trainer.common.models.language_model import load_lm
from guerdon.trainer.common.trl.folder import TunedPolicyFolder
from guerdon.trainer.common.trl.mixins import MeanOverPairs
from guerdon.trainer.common.trl.task import TrainingOutcome
from guerdon.trainer.fine_tune.inputs import PairTokens, PolicyInputs
from guerdon.trainer.fine_tune.measure import PairLikelihoods
from guerdon.trainer.fine_tune.pairs import PairTask
from guerdon.trainer.fine_tune.settings import DPOSettings

_SAID_ELSEWHERE = ("output", "policy", "train")
"""Settings that a reward's manifest names, or that mean nothing to who serves it."""


class DPOTask(PairTask):
    """Preference pairs, learned against the policy that training begins from."""

    settings: DPOSettings

    def __init__(self, inputs: PolicyInputs) -> None:
        super().__init__(inputs)
        self.beta = self.settings.beta
        # LoRA's reference is the policy without it.
        self.keeps_reference = not (self.settings.lora_r or self.settings.precompute_reference)

    def trainer(self, model: Any, arguments: dict[str, Any], more: dict[str, Any]) -> DirectTrainer:
        """TRL's trainer, with a second model where one is kept."""
        self.prepare(model, arguments, more)
        settings, rows = self.settings, self.inputs.train.rows
        config = DPOConfig(
            **arguments,
            beta=settings.beta,
            loss_type=[settings.loss],
            max_length=None,
            label_smoothing=settings.label_smoothing,
            precompute_ref_log_probs=settings.precompute_reference,
        )
        reference = None
        if self.keeps_reference:
            reference = load_lm(self.inputs.policy).to(next(model.parameters()).device)
        return DirectTrainer(args=config, ref_model=reference, train_dataset=_dataset(rows), **more)

    def leave_reward(
        self, folder: TunedPolicyFolder, outcome: TrainingOutcome[PairLikelihoods]
    ) -> None:
        """Write what serves the reward that the policy implies."""
        settings, inputs = self.settings, self.inputs
        rewards = np.concatenate(outcome.after.rewards(self.reference, self.beta))
        notes = asdict(settings) | {"lr": settings.learning_rate}
        leave_reward(
            folder,
            policy=settings.policy,
            resolved=inputs.policy,
            template=inputs.tokenizer.chat_template,
            beta=settings.beta,
            rewards=rewards,
            train_data=f"{inputs.train.source} (sha256 {inputs.train.sha256})",
            training={
                "settings": {k: v for k, v in notes.items() if k not in _SAID_ELSEWHERE},
                "pairs": len(inputs.train.rows),
                "steps": outcome.steps,
                "statistics_over_held_out_answers": len(rewards),
            },
        )


class DirectTrainer(MeanOverPairs, DPOTrainer):  # type: ignore[misc]
    """TRL's loss (eq. 7 of arXiv:2305.18290), metrics, optimiser, checkpoints and resume."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """The data set as it is: its rows are tokens already."""
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

        chosen, rejected = zip(*self.processes.share_out(self._lengths, some), strict=True)
        dataset = dataset.add_column("ref_chosen_logps", list(chosen))
        return dataset.add_column("ref_rejected_logps", list(rejected))


def _dataset(rows: Sequence[PairTokens]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [list(row.prompt) for row in rows],
            "chosen_ids": [list(row.chosen) for row in rows],
            "rejected_ids": [list(row.rejected) for row in rows],
            "prompt": [""] * len(rows),
        }
    )
