"""SFT, DPO and ORPO: the recipe, top to bottom.

measure what is held out, and answer some of its prompts
train, by TRL's trainer
round the weights to what is saved, and measure again
final/, plots/, summary.json
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, set_seed

from guerdon.trainer import fine_tuning
from guerdon.trainer.align.folder import AlignFolder
from guerdon.trainer.align.inputs import AlignInputs
from guerdon.trainer.align.measure import (
    Likelihoods,
    PairLikelihoods,
    likelihoods,
    pair_likelihoods,
    pair_measures,
    sft_measures,
)
from guerdon.trainer.align.samples import answer, write_samples
from guerdon.trainer.align.settings import DPOSettings, SFTSettings
from guerdon.trainer.align.trainers import make_trainer
from guerdon.trainer.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.language_model import check_lora, load_lm
from guerdon.trainer.modelling import merged, quiet


def train(inputs: AlignInputs, folder: AlignFolder, console: Console) -> dict[str, Any]:
    """Train, measure, save; the summary that is also written to summary.json.

    Raises:
        OutputError: the folder can't be written to.
        DivergedError: a loss is not finite.
        TrainingError: the model can't be loaded.
    """
    settings, phases = inputs.settings, fine_tuning.Phases()
    fine_tuning.check_one_device()
    folder.begin()
    with phases("load"), quiet():
        set_seed(settings.seed)
        model = load_lm(inputs.policy).to("cuda" if torch.cuda.is_available() else "cpu")
    measure = _Measure(inputs)
    with phases("evaluate before"):
        before = measure.begin(model)
        console.print(f"before training: {measure.words(before)}", highlight=False)
        answers = [answer(model, inputs)]
    with phases("train"), quiet():
        model, log, steps = _train(model, inputs, folder, console, measure)
    with phases("evaluate after"):
        model = merged(model).eval()
        fine_tuning.round_weights(model, settings.saved_dtype)
        measure.dtype = settings.saved_dtype  # from here on, what is measured is what is saved
        after = measure.of(model)
        answers.append(answer(model, inputs))
        write_samples(folder.samples, inputs, answers, steps)
    if settings.plots:
        with phases("plots"):
            measure.draw(folder, log.rows)
    with phases("save"), quiet():
        folder.publish_final(lambda part: _save(model, inputs, part))
    summary = {
        "algorithm": settings.algorithm,
        "policy": settings.policy,
        "steps": steps,
        "seed": settings.seed,
        "before": before,
        "after": after,
        "data": inputs.counts(),
        "seconds": phases.seconds,
        "versions": fine_tuning.versions(),
    }
    folder.write_summary(summary)
    if not settings.keep_checkpoints:
        folder.remove_checkpoints()
    return summary


def _train(
    model: Any, inputs: AlignInputs, folder: AlignFolder, console: Console, measure: _Measure
) -> tuple[Any, LoggedMetrics, int]:
    """The training itself; the model with LoRA or without, the metrics, the number of steps."""
    settings = inputs.settings
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    log = LoggedMetrics(folder.metrics, folder.metrics_until(done))
    if checkpoint:
        console.print(f"resuming at step {done}", highlight=False)
    bar = ProgressBar(console)
    evaluations = Evaluations(settings.eval_every, lambda: measure.logged(trainer.model), log)
    trainer = make_trainer(model, inputs, folder.checkpoints, [log, bar, evaluations])
    check_lora(trainer.model)
    trainer.remove_callback(PrinterCallback)  # there is a bar, or a line, already
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.stop()
    return trainer.model, log, int(trainer.state.global_step)


def _save(model: Any, inputs: AlignInputs, folder: Any) -> None:
    model.config.use_cache = True
    model = fine_tuning.in_dtype(model, inputs.settings.saved_dtype)
    # What a tuned model was once sampled with is no reason to refuse to save it.
    model.generation_config.do_sample = model.generation_config.do_sample or any(
        getattr(model.generation_config, name, None) not in (None, default)
        for name, default in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 50))
    )
    model.save_pretrained(folder, safe_serialization=True)
    inputs.tokenizer.save_pretrained(folder)


class _Measure:
    """Likelihoods of what is held out, by the policy as it is and as it began."""

    def __init__(self, inputs: AlignInputs) -> None:
        self._inputs = inputs
        self._sft = isinstance(inputs.settings, SFTSettings)
        self._beta = inputs.settings.beta if isinstance(inputs.settings, DPOSettings) else 1.0
        self.dtype: str = inputs.settings.dtype
        self._reference: Any = None
        self._now: Any = None

    def begin(self, model: Any) -> dict[str, Any]:
        """Measure the policy that training begins from; it is the reference of what follows."""
        self._reference = self._likelihoods(model)
        return self._said(self._reference)

    def of(self, model: Any) -> dict[str, Any]:
        """All that summary.json says."""
        self._now = self._likelihoods(model)
        return self._said(self._now)

    def logged(self, model: Any) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        found = self.of(model)
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

    def draw(self, folder: AlignFolder, rows: list[dict[str, Any]]) -> None:
        """The run's pictures."""
        from guerdon.trainer.align.plots import draw_plots

        pairs = None if self._sft else self._now.rewards(self._reference, self._beta)
        draw_plots(folder.plots, rows, pairs)

    def _likelihoods(self, model: Any) -> Likelihoods | PairLikelihoods:
        rows = self._inputs.eval.rows
        if self._sft:
            return likelihoods(model, rows, self.dtype)
        return pair_likelihoods(model, rows, self.dtype)

    def _said(self, now: Any) -> dict[str, Any]:
        return sft_measures(now) if self._sft else pair_measures(now, self._reference, self._beta)
