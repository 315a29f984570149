"""SFT, DPO and ORPO: the recipe, top to bottom.

    measure what is held out, and answer some of its prompts
    train, by TRL's trainer
    round the weights to what is saved, and measure again
    final/, plots/, summary.json

Under a launcher every process goes through it: each trains on its part of every batch and measures
its part of the rows; the first one prints and writes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PrinterCallback, set_seed

from guerdon.trainer.common.data_rows import hashes_of
from guerdon.trainer.common.implicit_manifest import leave_reward
from guerdon.trainer.common.language_model import check_lora, load_lm, merged
from guerdon.trainer.common.measures import Floats
from guerdon.trainer.common.processes import ALONE, Processes
from guerdon.trainer.common.trackers import Trackers
from guerdon.trainer.common.transformers_logging import quiet
from guerdon.trainer.common.trl import fine_tuning
from guerdon.trainer.common.trl.callbacks import Evaluations, LoggedMetrics, ProgressBar
from guerdon.trainer.fine_tune.folder import AlignFolder
from guerdon.trainer.fine_tune.held_out import HeldOut
from guerdon.trainer.fine_tune.inputs import AlignInputs
from guerdon.trainer.fine_tune.report import make_summary
from guerdon.trainer.fine_tune.samples import Answer, answer, write_samples
from guerdon.trainer.fine_tune.settings import DPOSettings
from guerdon.trainer.fine_tune.state import Begun
from guerdon.trainer.fine_tune.trainers import make_trainer

_SAID_ELSEWHERE = ("output", "policy", "train")
"""Settings that a reward's manifest names, or that mean nothing to who serves it."""


def train(
    inputs: AlignInputs, folder: AlignFolder, console: Console, processes: Processes = ALONE
) -> dict[str, Any]:
    """Train, measure, save; the summary that is also written to summary.json.

    Args:
        inputs: read and checked.
        folder: looked at, not begun.
        console: for a person; quiet but in the first process.
        processes: of the run.

    Returns:
        The summary; in other processes than the first, nothing.

    Raises:
        OutputError: the folder can't be written to.
        DivergedError: a loss or a measure is not finite.
        TrainingError: the model can't be loaded.
    """
    with processes.agreed():
        fine_tuning.check_shares(inputs.settings, processes)
        folder.begin()
        folder.check_data(folder.checkpoints, hashes_of(inputs.train, inputs.eval))
    with processes.agreed():  # the folder is there now for all of them
        begun = Begun.read(folder.checkpoints)
    return _Run(inputs, folder, console, processes, begun).whole()


@dataclass
class _Run:
    inputs: AlignInputs
    folder: AlignFolder
    console: Console
    processes: Processes
    begun: Begun

    def whole(self) -> dict[str, Any]:
        """All phases, of which a resumed run passes over what was done."""
        settings, begun = self.inputs.settings, self.begun
        phases = fine_tuning.Phases(begun.seconds)
        measure = HeldOut(self.inputs, self.processes, self.console)
        with phases("load"), quiet(), self.processes.agreed():
            set_seed(settings.seed)
            model = load_lm(self.inputs.policy).to(self.processes.device())
        with phases("evaluate before"), self.processes.alike():
            self._before(model, measure)
        with phases("train"), quiet(), self.processes.alike():
            model, log, steps = self._train(model, measure)
        phases.seconds["train"] = round(log.seconds, 2)
        with phases("evaluate after"), self.processes.alike():
            model = merged(model).eval()
            fine_tuning.round_weights(model, settings.saved_dtype)
            measure.dtype = settings.saved_dtype  # from here on, what is measured is what is saved
            after = measure.end(model)
            answers = [begun.answers, answer(model, self.inputs, self.processes)]
        summary: dict[str, Any] = {}
        with self.processes.agreed():
            if self.processes.main:
                summary = make_summary(
                    self.inputs, measure, after, log.rows, steps, self.processes.count
                )
                self._finish(model, measure, log, answers, phases, summary)
        return summary

    def _before(self, model: Any, measure: HeldOut) -> None:
        """The first policy on what is held out, unless an earlier part of the run knows."""
        begun = self.begun
        if begun.before:
            measure.resume(begun.before)
        else:
            begun.before = measure.begin(model)
            begun.answers = answer(model, self.inputs, self.processes)
        self.console.print(f"before training: {measure.words(measure.before)}", highlight=False)

    def _train(self, model: Any, measure: HeldOut) -> tuple[Any, LoggedMetrics, int]:
        """The training itself; the model with LoRA or without, the metrics, the number of steps."""
        settings, folder, processes = self.inputs.settings, self.folder, self.processes
        checkpoint = folder.last_checkpoint()
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        if checkpoint:
            self.console.print(f"resuming at step {done}", highlight=False)
        rows = folder.metrics_until(done)
        if processes.main:
            self.begun.save(folder.checkpoints)
        trackers = Trackers(settings, folder.path, done=done, main=processes.main)
        log = LoggedMetrics(folder.metrics, rows, main=processes.main, send=trackers.log)
        bar = ProgressBar(self.console)
        evaluate = Evaluations(settings.eval_every, lambda: measure.logged(trainer.model), log)
        callbacks = [log, bar, evaluate]
        try:
            trainer = make_trainer(model, self.inputs, folder.checkpoints, callbacks, processes)
            check_lora(trainer.model)
            trainer.remove_callback(PrinterCallback)  # there is a bar, or a line, already
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar.stop()
            trackers.finish()
        return trainer.model, log, int(trainer.state.global_step)

    def _finish(
        self,
        model: Any,
        measure: HeldOut,
        log: LoggedMetrics,
        answers: list[list[Answer]],
        phases: fine_tuning.Phases,
        summary: dict[str, Any],
    ) -> None:
        """Write all that the run leaves; the summary gets the seconds."""
        settings, folder = self.inputs.settings, self.folder
        write_samples(folder.samples, self.inputs, answers, summary["steps"])
        if settings.plots:
            with phases("plots"):
                measure.draw(folder, log.rows)
        with phases("save"), quiet():
            folder.publish_final(lambda part: _save(model, self.inputs, part))
            if isinstance(settings, DPOSettings):
                self._leave_reward(settings, np.concatenate(measure.rewards()), summary["steps"])
        summary["seconds"] = phases.seconds
        folder.write_summary(summary)
        if not settings.keep_checkpoints:
            folder.remove_checkpoints()

    def _leave_reward(self, settings: DPOSettings, rewards: Floats, steps: int) -> None:
        inputs = self.inputs
        notes = asdict(settings) | {"lr": settings.learning_rate}
        leave_reward(
            self.folder,
            policy=settings.policy,
            resolved=inputs.policy,
            template=inputs.tokenizer.chat_template,
            beta=settings.beta,
            rewards=rewards,
            train_data=f"{inputs.train.source} (sha256 {inputs.train.sha256})",
            training={
                "settings": {k: v for k, v in notes.items() if k not in _SAID_ELSEWHERE},
                "pairs": len(inputs.train.rows),
                "steps": steps,
                "statistics_over_held_out_answers": len(rewards),
            },
        )


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
