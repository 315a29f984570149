"""Train a reward model on preference pairs: the recipe, top to bottom.

Bradley-Terry: the chosen answer is preferred with probability σ(r₊ - r₋), and the loss is
the negative log-likelihood of that (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback, set_seed
from trl import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference

from guerdon.models import Manifest, template_hash
from guerdon.trainer import measures, sharing
from guerdon.trainer.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.errors import DivergedError, TrainingError
from guerdon.trainer.fine_tuning import (
    Phases,
    check_one_device,
    common_arguments,
    in_dtype,
    round_weights,
    versions,
)
from guerdon.trainer.inputs import Inputs
from guerdon.trainer.measures import Floats
from guerdon.trainer.modelling import load_base, max_positions, merged, prepare, quiet
from guerdon.trainer.pair_trainer import PairTrainer, shared_collator
from guerdon.trainer.run_folder import CHECKPOINTS, METRICS, PLOTS, RewardFolder
from guerdon.trainer.scoring import PairScores, score_pairs
from guerdon.trainer.settings import RewardSettings
from guerdon.trainer.tokens import TokenPairs


def train_reward(inputs: Inputs, folder: RewardFolder, console: Console) -> dict[str, Any]:
    """Train, measure, save; the summary that is also written to summary.json.

    Raises:
        OutputError: the folder can't be written to.
        DivergedError: a loss or score is not finite; nothing servable was saved.
        TrainingError: the model can't be loaded.
    """
    settings, phases = inputs.settings, Phases()
    check_one_device()
    folder.begin()
    with phases("load"), quiet():
        model, share = _load(inputs)
    measure = _Measure(inputs, share)

    before: float | None = None
    if settings.eval_before:
        with phases("evaluate before"):
            before = measures.accuracy(measure.scores(model, inputs.eval).delta).value
            console.print(f"before training: accuracy {before:.3f}", highlight=False)

    with phases("train"), quiet():
        log, steps = _train(model, inputs, folder, console, share, measure)

    with phases("evaluate after"):
        model = merged(model)
        round_weights(model, settings.saved_dtype)
        measure.dtype = settings.saved_dtype  # from here on, what is measured is what is saved
        scores = measure.scores(model, inputs.eval)
    with phases("statistics"):
        statistics = _statistics(inputs, measure, model)
    if settings.plots:
        with phases("plots"):
            _draw(folder, log, scores, inputs)

    summary = {
        "accuracy_before": before,
        **measure.everything(scores),
        "data": inputs.counts(),
        "training_set_scores": statistics,
        "steps": steps,
        "shared_prompts": share,
        "seed": settings.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": versions(),
        "seconds": phases.seconds,
    }
    with quiet():
        manifest = _manifest(inputs, model, summary)
        folder.publish(in_dtype(model, settings.saved_dtype), inputs.tokenizer, manifest, summary)
    if not settings.keep_checkpoints:
        folder.remove_checkpoints()
    return summary


def _load(inputs: Inputs) -> tuple[Any, bool]:
    """The model, ready to be trained, and whether pairs share their prompts."""
    set_seed(inputs.settings.seed)  # the new head is random
    model = load_base(inputs.base, inputs.tokenizer, grow=inputs.grow)
    share = _decide_sharing(inputs.settings, model, inputs)
    model = prepare(model, inputs.settings)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), share


def _decide_sharing(settings: RewardSettings, model: Any, inputs: Inputs) -> bool:
    """Whether pairs are computed in one row each; never without a probe that agreed."""
    if settings.share_prompts == "off":
        return False
    probes = inputs.train.pairs[:2] + inputs.eval.pairs[:1]
    pad_id = inputs.tokenizer.pad_token_id
    if sharing.may_share(model) and sharing.agrees(model, probes, pad_id):
        return True
    if settings.share_prompts == "on":
        raise TrainingError(
            "share_prompts is on, but this model's scores differ when prompts are shared"
        )
    return False


def _train(
    model: Any,
    inputs: Inputs,
    folder: RewardFolder,
    console: Console,
    share: bool,
    measure: _Measure,
) -> tuple[LoggedMetrics, int]:
    """The training itself; the metrics and the number of steps."""
    settings = inputs.settings
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    log = LoggedMetrics(folder.path / METRICS, folder.metrics_until(done))
    if checkpoint:
        console.print(f"resuming at step {done}", highlight=False)
    bar = ProgressBar(console)
    pad_id = inputs.tokenizer.pad_token_id
    pairs = inputs.train.pairs
    columns = {"chosen_ids": [p.chosen for p in pairs], "rejected_ids": [p.rejected for p in pairs]}
    trainer = PairTrainer(
        share=share,
        compute_dtype=settings.dtype,
        lengths=[len(p.chosen) + len(p.rejected) - (p.shared if share else 0) for p in pairs],
        model=model,
        args=RewardConfig(
            **common_arguments(settings, folder.path / CHECKPOINTS),
            bf16=False,  # `PairTrainer` casts itself, and keeps the head in float32
            center_rewards_coefficient=settings.center or None,
            max_length=None,  # the pairs were filtered, and counted, before
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=inputs.tokenizer,
        data_collator=shared_collator(pad_id) if share else DataCollatorForPreference(pad_id),
        callbacks=[
            log, bar, Evaluations(settings.eval_every, lambda: measure.logged(trainer.model), log),
        ],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # there is a bar, or a line, already
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.stop()
    return log, trainer.state.global_step


class _Measure:
    """Scores pairs with the run's settings, and says what the scores mean."""

    def __init__(self, inputs: Inputs, share: bool) -> None:
        self._inputs, self._share = inputs, share
        self.dtype: str = inputs.settings.dtype

    def scores(self, model: Any, tokens: TokenPairs) -> PairScores:
        return score_pairs(
            model, tokens.pairs, pad_id=self._inputs.tokenizer.pad_token_id,
            share=self._share, dtype=self.dtype,
        )  # fmt: skip

    def logged(self, model: Any) -> dict[str, float]:
        """The numbers of an evaluation in the middle."""
        delta = self.scores(model, self._inputs.eval).delta
        loss = measures.calibration(delta).log_loss
        return {"eval_accuracy": measures.accuracy(delta).value, "eval_loss": loss}

    def everything(self, scores: PairScores) -> dict[str, Any]:
        """All that summary.json says of the held-out pairs."""
        chosen, rejected = answer_tokens(self._inputs.eval)
        held_out = measures.accuracy(scores.delta)
        return {
            "accuracy": held_out.value,
            "accuracy_low": held_out.low,
            "accuracy_high": held_out.high,
            "above_chance": held_out.low > 0.5,
            "ties": int((scores.delta == 0).sum()),
            "mean_margin": float(scores.delta.mean()),
            "calibration": asdict(measures.calibration(scores.delta)),
            "length_bias": asdict(
                measures.length_bias(scores.chosen, scores.rejected, chosen, rejected)
            ),
        }


def answer_tokens(tokens: TokenPairs) -> tuple[Floats, Floats]:
    """Lengths of the chosen and of the rejected answers."""
    return (
        np.array([p.chosen_answer for p in tokens.pairs], dtype=np.float64),
        np.array([p.rejected_answer for p in tokens.pairs], dtype=np.float64),
    )


def _statistics(inputs: Inputs, measure: _Measure, model: Any) -> dict[str, float]:
    """Mean and standard deviation of raw scores over the training set, or a sample of it."""
    pairs, most = inputs.train.pairs, inputs.settings.stats_pairs
    if len(pairs) > most:
        random = np.random.default_rng(inputs.settings.seed)
        places = np.sort(random.choice(len(pairs), most, replace=False))
        pairs = [pairs[i] for i in places]
    scores = measure.scores(model, TokenPairs(pairs, 0, 0, 0)).all
    std = float(scores.std())
    if not std > 0:
        raise DivergedError("all training answers have the same score: the model learned nothing")
    return {"mean": float(scores.mean()), "std": std, "responses": len(scores)}


def _draw(folder: RewardFolder, log: LoggedMetrics, scores: PairScores, inputs: Inputs) -> None:
    from guerdon.trainer.plots import draw_all

    chosen, rejected = answer_tokens(inputs.eval)
    draw_all(
        folder.path / PLOTS, rows=log.rows, scores=scores, chosen_tokens=chosen,
        rejected_tokens=rejected, calibration=measures.calibration(scores.delta),
    )  # fmt: skip


def _manifest(inputs: Inputs, model: Any, summary: dict[str, Any]) -> Manifest:
    settings, statistics = inputs.settings, summary["training_set_scores"]
    longest = max(settings.max_length, inputs.eval.longest)
    positions = max_positions(model)
    notes = asdict(settings) | {"lr": settings.learning_rate}
    return Manifest(
        kind="sequence",
        mean=statistics["mean"],
        std=statistics["std"],
        template_hash=template_hash(inputs.tokenizer.chat_template),
        base_model=settings.base,
        train_data=inputs.train_data.described,
        max_tokens=min(longest, positions) if positions else longest,
        training={
            "settings": {k: v for k, v in notes.items() if k not in ("output", "base", "train")},
            "pairs": len(inputs.train.pairs),
            "steps": summary["steps"],
            "held_out_pairs": len(inputs.eval.pairs),
            "held_out_accuracy": summary["accuracy"],
            "statistics_over_responses": statistics["responses"],
            "seed": settings.seed,
            "versions": summary["versions"],
        },
    )
