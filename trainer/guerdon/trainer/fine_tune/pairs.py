"""What DPO and ORPO add to the recipe alike: preference pairs, and the rewards that are implied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guerdon.trainer.common.models.language_model import drop_dropout
from guerdon.trainer.fine_tune.measure import (
    PairLikelihoods,
    pair_differences,
    pair_likelihoods,
    pair_measures,
)
from guerdon.trainer.fine_tune.plots import draw_plots
from guerdon.trainer.fine_tune.task import PolicyTask

_OF_A_GROUP = ("implicit_accuracy", "margin", "likelihood_accuracy", "mean_likelihood_accuracy")


class PairTask(PolicyTask[PairLikelihoods]):
    """Preference pairs, learned by DPO or ORPO."""

    measured = PairLikelihoods
    sequences = 2
    beta: float = 1.0
    """The factor of implied rewards."""

    def prepare(self, model: Any, arguments: dict[str, Any], more: dict[str, Any]) -> None:
        """Leave dropout to LoRA alone, and tell the trainer how long the pairs are."""
        # The reference has no dropout either. TRL's own switch would come after LoRA, and end its
        # too.
        drop_dropout(model)
        arguments["disable_dropout"] = False
        more["lengths"] = [row.longest for row in self.inputs.train.rows]
        more["processes"] = self.processes

    def likelihoods(self, model: Any, dtype: str, progress: Any) -> PairLikelihoods:
        """Likelihoods of both answers of the held-out pairs."""
        return pair_likelihoods(model, self.inputs.eval.rows, dtype, self.processes, progress)

    def describe_measures(self, found: PairLikelihoods) -> str:
        """How often the chosen answer is the likelier."""
        said = self.measures(found)
        return (
            f"the chosen answer is the likelier of {said['likelihood_accuracy']['value']:.3f} of "
            f"the pairs, {said['mean_likelihood_accuracy']['value']:.3f} by the token"
        )

    def logged(self, found: PairLikelihoods) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        said = self.measures(found)
        return {
            "eval_accuracy": said["implicit_accuracy"]["value"],
            "eval_margin": said["margin"],
            "eval_nll": said["chosen_nll"],
        }

    def measures(self, now: PairLikelihoods) -> dict[str, Any]:
        """What summary.json says of the held-out pairs."""
        return pair_measures(now, self.reference, self.beta, self.prompts)

    def differences(self, now: PairLikelihoods) -> dict[str, Any]:
        """after − before, pair by pair, with its interval."""
        return pair_differences(now, self.reference, self.beta, self.prompts)

    def group_measures(self, now: PairLikelihoods, places: list[int]) -> dict[str, Any]:
        """What summary.json says of the pairs of one group."""
        found = pair_measures(
            now.of(places), self.reference.of(places), self.beta, self.prompts[places]
        )
        return {"n": len(places), **{key: found[key] for key in _OF_A_GROUP}}

    def warnings(self, now: PairLikelihoods) -> list[str]:
        """Whether nothing was learned that can be told from chance."""
        if self.measures(now)["implicit_accuracy"]["low"] <= 0.5:
            return ["The implied reward can't be told from chance on the held-out pairs."]
        return []

    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: PairLikelihoods) -> None:
        """Draw the run's pictures into a folder, which is made."""
        draw_plots(folder, rows, found.rewards(self.reference, self.beta))
