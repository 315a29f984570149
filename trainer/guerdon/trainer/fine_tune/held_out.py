"""What a run measures of its held-out rows, and what it says of that."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from guerdon.trainer.common.measures import Floats, numbered
from guerdon.trainer.common.processes import Processes
from guerdon.trainer.common.row_notes import measured_by_group
from guerdon.trainer.common.trl.callbacks import counted
from guerdon.trainer.fine_tune.folder import AlignFolder
from guerdon.trainer.fine_tune.inputs import AlignInputs, prompt_of
from guerdon.trainer.fine_tune.measure import (
    Likelihoods,
    PairLikelihoods,
    likelihoods,
    pair_differences,
    pair_likelihoods,
    pair_measures,
    sft_differences,
    sft_measures,
)
from guerdon.trainer.fine_tune.settings import DPOSettings, SFTSettings


class HeldOut:
    """Likelihoods of what is held out, by the policy as it is and as it began.

    Args:
        inputs: of the run.
        processes: of the run: all of them measure, each a part.
        console: for a bar.
    """

    def __init__(self, inputs: AlignInputs, processes: Processes, console: Console) -> None:
        self._inputs, self._processes, self._console = inputs, processes, console
        self._sft = isinstance(inputs.settings, SFTSettings)
        self._beta = inputs.settings.beta if isinstance(inputs.settings, DPOSettings) else 1.0
        self.dtype: str = inputs.settings.dtype
        self._prompts = numbered(tuple(prompt_of(row)) for row in inputs.eval.rows)
        self._reference: Any = None
        self._now: Any = None

    def begin(self, model: Any) -> dict[str, Any]:
        """Measure the policy that training begins from, the reference of what follows; for
        `resume`."""
        self._reference = self._bar(model, "measuring the policy as it is")
        tree: dict[str, Any] = self._reference.tree()
        return tree

    def resume(self, tree: dict[str, Any]) -> None:
        """Take up what `begin` gave in an earlier part of the run."""
        kind: Any = Likelihoods if self._sft else PairLikelihoods
        self._reference = kind.from_tree(tree)

    @property
    def before(self) -> dict[str, Any]:
        """What summary.json says of the first policy."""
        return self._said(self._reference)

    def end(self, model: Any) -> dict[str, Any]:
        """Measure the trained policy; what summary.json says of it."""
        self._now = self._bar(model, "measuring what it learned")
        return self._said(self._now)

    def difference(self) -> dict[str, Any]:
        """after − before, row by row, with its interval."""
        if self._sft:
            return sft_differences(self._now, self._reference, self._prompts)
        return pair_differences(self._now, self._reference, self._beta, self._prompts)

    def subgroups(self) -> dict[str, Any]:
        """What is measured of the trained policy on the rows of each group, by field and value."""
        return measured_by_group(self._inputs.subgroups, self._group)

    def logged(self, model: Any) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        found = self._said(self._likelihoods(model))
        if self._sft:
            return {"eval_nll": found["nll"]}
        return {
            "eval_accuracy": found["implicit_accuracy"]["value"],
            "eval_margin": found["margin"],
            "eval_nll": found["chosen_nll"],
        }

    def words(self, found: dict[str, Any]) -> str:
        """A line for a person."""
        if self._sft:
            return f"{found['nll']:.3f} nats a token (perplexity {found['perplexity']:.1f})"
        return (
            f"the chosen answer is the likelier of {found['likelihood_accuracy']['value']:.3f} of "
            f"the pairs, {found['mean_likelihood_accuracy']['value']:.3f} by the token"
        )

    def warnings(self) -> list[str]:
        """What a person should know before using the policy."""
        found = self.difference()
        if self._sft:
            high = found["answer_nll"]["high"]
            if high is None or high >= 0:
                return ["The held-out answers did not grow likelier beyond their noise."]
            return []
        if self._said(self._now)["implicit_accuracy"]["low"] <= 0.5:
            return ["The implied reward can't be told from chance on the held-out pairs."]
        return []

    def draw(self, folder: AlignFolder, rows: list[dict[str, Any]]) -> None:
        """The run's pictures."""
        from guerdon.trainer.fine_tune.plots import draw_plots

        draw_plots(folder.plots, rows, None if self._sft else self.rewards())

    def rewards(self) -> tuple[Floats, Floats]:
        """What is implied of the chosen and of the rejected answers, at the end."""
        found: tuple[Floats, Floats] = self._now.rewards(self._reference, self._beta)
        return found

    def _bar(self, model: Any, words: str) -> Likelihoods | PairLikelihoods:
        sequences = len(self._inputs.eval.rows) * (1 if self._sft else 2)
        with counted(self._console, words, sequences) as progress:
            return self._likelihoods(model, progress)

    def _likelihoods(
        self, model: Any, progress: Any = lambda done: None
    ) -> Likelihoods | PairLikelihoods:
        measure: Any = likelihoods if self._sft else pair_likelihoods
        found: Likelihoods | PairLikelihoods = measure(
            model, self._inputs.eval.rows, self.dtype, self._processes, progress
        )
        return found

    def _group(self, places: list[int]) -> dict[str, Any]:
        now, reference = self._now.of(places), self._reference.of(places)
        if self._sft:
            return {"n": len(places), "nll_before": reference.nll, "nll": now.nll}
        found = pair_measures(now, reference, self._beta, self._prompts[places])
        keys = ("implicit_accuracy", "margin", "likelihood_accuracy", "mean_likelihood_accuracy")
        return {"n": len(places), **{key: found[key] for key in keys}}

    def _said(self, now: Any) -> dict[str, Any]:
        if self._sft:
            return sft_measures(now, self._prompts)
        return pair_measures(now, self._reference, self._beta, self._prompts)
