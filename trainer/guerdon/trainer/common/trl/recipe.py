"""Fine-tuning on files, top to bottom: what reward models, SFT, DPO and ORPO do alike.

    measure what is held out
    train, by a trainer of TRL or transformers
    round the weights to what is saved, and measure again
    the model, summary.json, plots/

Under a launcher every process goes through it: each trains on its part of every batch and measures
its part of the rows; the first one prints and writes.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from transformers import PrinterCallback

from guerdon.trainer.common.language_model import merged
from guerdon.trainer.common.processes import ALONE, Processes
from guerdon.trainer.common.trackers import Trackers
from guerdon.trainer.common.transformers_logging import quiet
from guerdon.trainer.common.trl.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.common.trl.task import FineTuneTask, Folder, Measured, TrainingOutcome
from guerdon.trainer.common.trl.trainer_arguments import Phases, check_shares, round_weights


def fine_tune(
    task: FineTuneTask[Measured, Folder],
    folder: Folder,
    console: Console,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train, measure, save; the summary that is also written to summary.json.

    Args:
        task: read and checked.
        folder: looked at, not begun.
        console: for a person; quiet but in the first process.
        processes: of the run.

    Returns:
        The summary; in other processes than the first, nothing.

    Raises:
        OutputError: the folder can't be written to.
        DivergedError: a loss or a measure is not finite; no model was saved.
        TrainingError: the model can't be loaded.
    """
    settings = task.settings
    task.processes, task.console = processes, console
    with processes.agreed():
        check_shares(settings, processes)
        folder.begin()
        folder.check_data(folder.checkpoints, task.hashes)
    with processes.agreed():  # the folder is there now for all of them
        phases = Phases(task.take_up(folder))
    with phases("load"), quiet():
        with processes.agreed():
            model = task.load()
        task.settle()
    before: Measured | None = None
    if task.eval_before:
        with phases("evaluate before"), processes.alike():
            before = task.measure_before(model)
            console.print(f"before training: {task.words(before)}", highlight=False)
    with phases("train"), quiet(), processes.alike():
        model, log, steps = _train(model, task, folder)
    train_seconds = log.seconds
    with phases("evaluate after"), processes.alike():
        model = merged(model).eval()
        round_weights(model, settings.saved_dtype)
        after = task.measure_after(model)
    with processes.alike():
        task.measure_more(model, phases)
    summary: dict[str, Any] = {}
    with processes.agreed():
        if processes.main:
            outcome = TrainingOutcome(model, before, after, log.rows, steps, train_seconds)
            summary = task.summary(outcome)
            if settings.plots:
                with phases("plots"):
                    task.draw(folder.plots, log.rows, after)
            with quiet():
                task.save(folder, outcome, summary, phases)
            if not settings.keep_checkpoints:
                folder.remove_checkpoints()
    return summary


def _train(
    model: Any, task: FineTuneTask[Measured, Folder], folder: Folder
) -> tuple[Any, LoggedMetrics, int]:
    """The trained model, with LoRA or without, the metrics, and the number of steps."""
    settings, console, main = task.settings, task.console, task.processes.main
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint:
        console.print(f"resuming at step {done}", highlight=False)
    rows = folder.metrics_until(done)
    if main:
        task.save_progress(folder)
    trackers = Trackers(settings, folder.path, done=done, main=main)
    log = LoggedMetrics(folder.metrics, rows, main=main, send=trackers.log)
    bar = ProgressBar(console)

    def evaluate() -> dict[str, float]:
        return task.logged(task.measure(trainer.model, settings.dtype))

    callbacks = [log, bar, Evaluations(settings.eval_every, evaluate, log)]
    try:
        trainer = task.make_trainer(model, folder.checkpoints, callbacks)
        trainer.remove_callback(PrinterCallback)  # there is a bar, or a line, already
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.stop()
        trackers.finish()
    return trainer.model, log, int(trainer.state.global_step)
