"""Train a reward model: the recipe, top to bottom, for every objective."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from transformers import PrinterCallback

from guerdon.trainer.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.fine_tuning import (
    Phases,
    check_one_device,
    in_dtype,
    round_weights,
    versions,
)
from guerdon.trainer.modelling import merged, quiet
from guerdon.trainer.objectives.task import Task
from guerdon.trainer.run_folder import CHECKPOINTS, METRICS, PLOTS, RewardFolder


def train_reward(task: Task, folder: RewardFolder, console: Console) -> dict[str, Any]:
    """Train, measure, save; the summary that is also written to summary.json.

    Raises:
        OutputError: the folder can't be written to.
        DivergedError: a loss or score is not finite; nothing servable was saved.
        TrainingError: the model can't be loaded.
    """
    settings, phases = task.settings, Phases()
    check_one_device()
    folder.begin()
    with phases("load"), quiet():
        model = task.load()

    before: Any = None
    if settings.eval_before:
        with phases("evaluate before"):
            before = task.measure(model, settings.dtype)
            console.print(f"before training: {task.words(before)}", highlight=False)

    with phases("train"), quiet():
        log, steps = _train(model, task, folder, console)

    with phases("evaluate after"):
        model = merged(model)
        round_weights(model, settings.saved_dtype)
        # From here on, what is measured is what is saved.
        found = task.measure(model, settings.saved_dtype)
    with phases("statistics"):
        statistics = task.statistics(model, settings.saved_dtype)
    if settings.plots:
        with phases("plots"):
            task.draw(folder.path / PLOTS, log.rows, found)

    summary = {
        "objective": settings.objective,
        **task.before(before),
        **task.summarise(found),
        "data": task.counts(),
        "training_set_scores": statistics,
        "steps": steps,
        "seed": settings.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": versions(),
        "seconds": phases.seconds,
    }
    with quiet():
        manifest = task.manifest(model, summary)
        folder.publish(in_dtype(model, settings.saved_dtype), task.tokenizer, manifest, summary)
    if not settings.keep_checkpoints:
        folder.remove_checkpoints()
    return summary


def _train(
    model: Any, task: Task, folder: RewardFolder, console: Console
) -> tuple[LoggedMetrics, int]:
    """The training itself; the metrics and the number of steps."""
    settings = task.settings
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    log = LoggedMetrics(folder.path / METRICS, folder.metrics_until(done))
    if checkpoint:
        console.print(f"resuming at step {done}", highlight=False)
    bar = ProgressBar(console)

    def evaluate() -> dict[str, float]:
        return task.logged(task.measure(trainer.model, settings.dtype))

    callbacks = [log, bar, Evaluations(settings.eval_every, evaluate, log)]
    trainer = task.make_trainer(model, folder.path / CHECKPOINTS, callbacks)
    trainer.remove_callback(PrinterCallback)  # there is a bar, or a line, already
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.stop()
    return log, trainer.state.global_step
