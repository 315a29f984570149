"""SFT: the likelihood of demonstrated answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from trl import SFTConfig

from guerdon.trainer.common.measuring.statistics import estimate
from guerdon.trainer.common.trl.completions import (
    CompletionTrainer,
    completion_dataset,
    keeps_apart,
)
from guerdon.trainer.fine_tune.measure import Likelihoods, likelihoods
from guerdon.trainer.fine_tune.settings import SFTSettings
from guerdon.trainer.fine_tune.task import PolicyTask


class SFTTask(PolicyTask[Likelihoods]):
    """Answers, learned without the prompts before them."""

    measured = Likelihoods
    sequences = 1
    settings: SFTSettings

    def trainer(
        self, model: Any, arguments: dict[str, Any], more: dict[str, Any]
    ) -> CompletionTrainer:
        """TRL's trainer, with batches in one row where the model keeps their answers apart."""
        data = completion_dataset(self.inputs.train.rows)
        several = arguments["per_device_train_batch_size"] > 1
        packed = self.settings.packing == "auto" and several and keeps_apart(model, data)
        config = SFTConfig(
            **arguments,
            max_length=None,
            padding_free=packed,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = CompletionTrainer(args=config, train_dataset=data, **more)
        trainer.processes = self.processes
        return trainer

    def likelihoods(self, model: Any, dtype: str, progress: Any) -> Likelihoods:
        """Likelihoods of the held-out answers."""
        return likelihoods(model, self.inputs.eval.rows, dtype, self.processes, progress)

    def describe_measures(self, found: Likelihoods) -> str:
        """The mean likelihood by the token."""
        said = self.measures(found)
        return f"{said['nll']:.3f} nats a token (perplexity {said['perplexity']:.1f})"

    def logged(self, found: Likelihoods) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        return {"eval_nll": found.nll}

    def measures(self, now: Likelihoods) -> dict[str, Any]:
        """What summary.json says of the held-out answers."""
        return {
            "nll": now.nll,
            "perplexity": float(np.exp(now.nll)),
            "answer_nll_se": estimate(-now.means, prompts=self.prompts).se,
        }

    def differences(self, now: Likelihoods) -> dict[str, Any]:
        """after − before of the mean over answers, not tokens, with its interval."""
        differences = self.reference.means - now.means
        return {"answer_nll": estimate(differences, prompts=self.prompts).as_dict()}

    def group_measures(self, now: Likelihoods, places: list[int]) -> dict[str, Any]:
        """What summary.json says of the answers of one group."""
        before = self.reference.of(places).nll
        return {"n": len(places), "nll_before": before, "nll": now.of(places).nll}

    def warnings(self, now: Likelihoods) -> list[str]:
        """Whether nothing was learned that can be told from noise."""
        high = self.differences(now)["answer_nll"]["high"]
        if high is None or high >= 0:
            return ["The held-out answers did not grow likelier beyond their noise."]
        return []
