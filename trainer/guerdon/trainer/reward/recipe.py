"""Train a reward model: the recipe, top to bottom, for every objective."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from transformers import PrinterCallback

from guerdon.trainer.common.language_model import merged
from guerdon.trainer.common.processes import ALONE, Processes
from guerdon.trainer.common.run_folder import CHECKPOINTS, METRICS, PLOTS
from guerdon.trainer.common.trackers import Trackers
from guerdon.trainer.common.transformers_logging import quiet
from guerdon.trainer.common.trl.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.common.trl.fine_tuning import (
    Phases,
    check_shares,
    in_dtype,
    round_weights,
    versions,
)
from guerdon.trainer.reward.folder import RewardFolder
from guerdon.trainer.reward.objectives.task import Task


def train_reward(
    task: Task, folder: RewardFolder, console: Console, processes: Processes = ALONE
) -> dict[str, Any]:
    """Train, measure, save; the summary that is also written to summary.json.

    Args:
        task: read and checked.
        folder: looked at, not begun.
        console: for a person; quiet but in the first process.
        processes: of the run. Each trains on its part of every batch and measures its part of the
            rows; the first one prints and writes.

    Returns:
        The summary; in other processes than the first, nothing.

    Raises:
        OutputError: the folder can't be written to.
        DivergedError: a loss or score is not finite; nothing servable was saved.
        TrainingError: the model can't be loaded.
    """
    settings, phases = task.settings, Phases()
    task.processes = processes
    with processes.agreed():
        check_shares(settings, processes)
        folder.begin()
        folder.check_data(folder.path / CHECKPOINTS, task.hashes)
    with phases("load"), quiet():
        with processes.agreed():
            model = task.load()
        task.settle()

    before: Any = None
    if settings.eval_before:
        with phases("evaluate before"), processes.alike():
            before = task.measure(model, settings.dtype)
            console.print(f"before training: {task.words(before)}", highlight=False)

    with phases("train"), quiet(), processes.alike():
        log, steps = _train(model, task, folder, console)

    with phases("evaluate after"), processes.alike():
        model = merged(model)
        round_weights(model, settings.saved_dtype)
        # From here on, what is measured is what is saved.
        found = task.measure(model, settings.saved_dtype)
    with phases("statistics"), processes.alike():
        statistics = task.statistics(model, settings.saved_dtype)
    summary: dict[str, Any] = {}
    with processes.agreed():
        if processes.main:
            more = {"training_set_scores": statistics, "steps": steps}
            summary = _summary(task, model, before, found, more)
            _finish(task, folder, model, log.rows, found, phases, summary)
    return summary


def _summary(
    task: Task, model: Any, before: Any, found: Any, more: dict[str, Any]
) -> dict[str, Any]:
    """What goes into summary.json but for the seconds, which go on."""
    settings = task.settings
    return {
        "objective": settings.objective,
        **task.before(before),
        **task.summarise(found),
        "data": task.counts(),
        **more,
        "seed": settings.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "processes": task.processes.count,
        "versions": versions(),
    }


def _finish(
    task: Task,
    folder: RewardFolder,
    model: Any,
    rows: list[dict[str, Any]],
    found: Any,
    phases: Phases,
    summary: dict[str, Any],
) -> None:
    """Write all that the run leaves; the summary gets the seconds."""
    settings = task.settings
    if settings.plots:
        with phases("plots"):
            task.draw(folder.path / PLOTS, rows, found)
    summary["seconds"] = phases.seconds
    with quiet():
        manifest = task.manifest(model, summary)
        folder.publish(in_dtype(model, settings.saved_dtype), task.tokenizer, manifest, summary)
    if not settings.keep_checkpoints:
        folder.remove_checkpoints()


def _train(
    model: Any, task: Task, folder: RewardFolder, console: Console
) -> tuple[LoggedMetrics, int]:
    """The training itself; the metrics and the number of steps."""
    settings = task.settings
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    main = task.processes.main
    rows = folder.metrics_until(done)
    trackers = Trackers(settings, folder.path, done=done, main=main)
    log = LoggedMetrics(folder.path / METRICS, rows, main=main, send=trackers.log)
    if checkpoint:
        console.print(f"resuming at step {done}", highlight=False)
    bar = ProgressBar(console)

    def evaluate() -> dict[str, float]:
        return task.logged(task.measure(trainer.model, settings.dtype))

    callbacks = [log, bar, Evaluations(settings.eval_every, evaluate, log)]
    try:
        trainer = task.make_trainer(model, folder.path / CHECKPOINTS, callbacks)
        trainer.remove_callback(PrinterCallback)  # there is a bar, or a line, already
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.stop()
        trackers.finish()
    return log, trainer.state.global_step
