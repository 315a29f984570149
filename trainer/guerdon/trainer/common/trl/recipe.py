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

import torch
from rich.console import Console
from transformers import PrinterCallback

from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.models.language_model import merged
from guerdon.trainer.common.models.transformers_logging import quiet
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.report import say
from guerdon.trainer.common.run_state import package_versions, timed_phase
from guerdon.trainer.common.trackers import Trackers
from guerdon.trainer.common.trl.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.common.trl.settings import FineTuneSettings
from guerdon.trainer.common.trl.task import FineTuneTask, Folder, Measured, TrainingOutcome

PACKAGES = ("torch", "transformers", "trl", "peft")
"""The packages whose versions a summary names."""


def fine_tune(
    task: FineTuneTask[Measured, Folder],
    folder: Folder,
    console: Console,
    processes: ProcessGroup = SINGLE_PROCESS,
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
    with processes.fail_together():
        check_shares(settings, processes)
        folder.begin()
        folder.check_data(folder.checkpoints, task.hashes)
    with processes.fail_together():  # the folder is there now for all of them
        seconds = task.take_up(folder)
    with timed_phase(seconds, "load"), quiet():
        with processes.fail_together():
            model = task.load()
        task.settle()
    before: Measured | None = None
    if task.eval_before:
        with timed_phase(seconds, "evaluate before"), processes.one_error():
            before = task.measure_before(model)
            say(console, f"before training: {task.describe_measures(before)}")
    with timed_phase(seconds, "train"), quiet(), processes.one_error():
        model, log, steps = _train(model, task, folder)
    train_seconds = log.seconds
    with timed_phase(seconds, "evaluate after"), processes.one_error():
        model = merged(model).eval()
        if settings.saved_dtype == "bfloat16":
            _round(model)
        after = task.measure_after(model)
    with processes.one_error():
        task.measure_more(model, seconds)
    summary: dict[str, Any] = {}
    with processes.fail_together():
        if processes.main:
            outcome = TrainingOutcome(model, before, after, log.rows, steps, train_seconds)
            summary = task.summary(outcome) | {"versions": package_versions(*PACKAGES)}
            if settings.plots:
                with timed_phase(seconds, "plots"):
                    task.draw(folder.plots, log.rows, after)
            if settings.saved_dtype == "bfloat16":
                model.to(torch.bfloat16)
            with quiet():
                task.save(folder, outcome, summary, seconds)
            if not settings.keep_checkpoints:
                folder.remove_checkpoints()
    return summary


def check_shares(settings: FineTuneSettings, processes: ProcessGroup) -> None:
    """Refuse a batch that the processes can't share, and GPUs that nobody would use.

    Raises:
        SettingsError: the batch does not divide.
        TrainingError: there are more GPUs than the one process takes.
    """
    if settings.batch_size % processes.world_size:
        raise SettingsError(
            f"batch_size is {settings.batch_size}, which {processes.world_size} processes "
            "can't share evenly"
        )
    if processes.world_size == 1 and torch.cuda.device_count() > 1:
        raise TrainingError(
            "several GPUs are visible: start one process for each by accelerate launch or "
            "torchrun, or set CUDA_VISIBLE_DEVICES=0"
        )


@torch.no_grad()
def _round(model: Any) -> None:
    """Round the weights to what will be saved, so that the saved model is what is measured."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def _train(
    model: Any, task: FineTuneTask[Measured, Folder], folder: Folder
) -> tuple[Any, LoggedMetrics, int]:
    """The trained model, with LoRA or without, the metrics, and the number of steps."""
    settings, console, main = task.settings, task.console, task.processes.main
    checkpoint = folder.last_checkpoint()
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint:
        say(console, f"resuming at step {done}")
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
