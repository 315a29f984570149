"""What SFT, DPO and ORPO add to the recipe alike: a policy, its answers, and how it is saved."""

from __future__ import annotations

import abc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rich.console import Console
from transformers import set_seed

from guerdon.trainer.common.data.row_notes import measured_by_group
from guerdon.trainer.common.data.rows import hashes_by_source
from guerdon.trainer.common.measuring.measures import numbered
from guerdon.trainer.common.models.language_model import check_lora, load_lm, lora_config
from guerdon.trainer.common.models.memory import MemoryEstimate, measure, show_memory
from guerdon.trainer.common.processes import launched
from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.report import show_counts
from guerdon.trainer.common.run_folder import write_whole
from guerdon.trainer.common.run_state import rounded, timed_phase
from guerdon.trainer.common.trl.completions import BATCH_TOKENS
from guerdon.trainer.common.trl.folder import TunedPolicyFolder
from guerdon.trainer.common.trl.mixins import EpochOrder
from guerdon.trainer.common.trl.task import FineTuneTask, TrainingOutcome, trainer_arguments
from guerdon.trainer.fine_tune.inputs import PolicyInputs, prompt_ids
from guerdon.trainer.fine_tune.measure import Likelihoods, PairLikelihoods
from guerdon.trainer.fine_tune.plots import draw_plots
from guerdon.trainer.fine_tune.samples import SampledAnswer, answer_prompts, write_samples
from guerdon.trainer.fine_tune.settings import PolicySettings

STATE = "begun.json"


Found = TypeVar("Found", Likelihoods, PairLikelihoods)
"""What a policy makes of the held-out rows: of answers, or of pairs of them."""


@dataclass
class BeforeTraining:
    """What a resumed run need not do again: measures before training, and the time spent."""

    before: dict[str, Any] = field(default_factory=dict)
    """Likelihoods of the held-out rows by the first policy."""
    answers: list[SampledAnswer] = field(default_factory=list)
    """The first policy's answers to the first of them."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, earlier parts of the run included."""

    @classmethod
    def read(cls, folder: Path) -> BeforeTraining:
        """What an earlier part of the run left in a folder, or nothing."""
        try:
            return cls(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Write it, whole."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / STATE, json.dumps(asdict(self), ensure_ascii=False))


class PolicyTask(FineTuneTask[Found, TunedPolicyFolder]):
    """A way of training a policy on answers or on pairs of them, with its data, checked.

    Args:
        inputs: of the run.
    """

    measured: type[Found]
    """The class of what is measured."""
    sequences: ClassVar[int]
    """Sequences in a row of the data."""
    all_logits: ClassVar[bool] = False
    """Whether the loss makes all logits of a batch at once; others fold them up in tiles."""
    keeps_reference: bool = False
    """Whether a second model is held in memory."""
    settings: PolicySettings
    reference: Found
    """The held-out rows by the policy that training began from."""

    def __init__(self, inputs: PolicyInputs) -> None:
        self.inputs, self.settings = inputs, inputs.settings
        self.prompts = numbered(tuple(prompt_ids(row)) for row in inputs.eval.rows)
        """The prompt of each held-out row; equal numbers are one prompt."""
        self._state = BeforeTraining()
        self._answers: list[SampledAnswer] = []

    # Data

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the training and the held-out data, by their sources."""
        return hashes_by_source(self.inputs.train, self.inputs.eval)

    def show_counts(self, console: Console) -> None:
        """Say how much data there is, and what is odd about it."""
        show_counts(self.inputs.counts(), console, empty="left out")

    def show_memory(self, console: Console) -> None:
        """Say how much memory one process will need."""
        show_memory(self.memory_estimate(launched()), console)

    def memory_estimate(self, processes: int = 1) -> MemoryEstimate:
        """What one process holds at the height of a step: a batch of the longest rows.

        Args:
            processes: that share a batch.

        Raises:
            TrainingError: there is no language model for the config.
        """
        settings = self.settings
        shape = measure(self.inputs.config, settings.dtype, settings.lora_r)
        tokens = settings.batch_size // processes * self.sequences * self.inputs.train.longest
        # Where the loss folds logits up, the most are made where held-out rows are measured.
        positions = tokens if self.all_logits else min(tokens, BATCH_TOKENS)
        return shape.estimate(
            settings, tokens, positions, "a batch", reference=self.keeps_reference
        )

    # Training

    def load(self) -> Any:
        """The policy in float32, on its device."""
        set_seed(self.settings.seed)
        return load_lm(self.inputs.policy).to(self.processes.device())

    def make_trainer(self, model: Any, checkpoints: Path, callbacks: Sequence[Any]) -> Any:
        """TRL's trainer over token ids; wraps the model where LoRA is asked for."""
        settings = self.settings
        arguments: dict[str, Any] = trainer_arguments(settings, checkpoints, self.processes)
        arguments["bf16"] = settings.dtype == "bfloat16"
        more: dict[str, Any] = {
            "model": model,
            "processing_class": self.inputs.tokenizer,
            "callbacks": [*callbacks, EpochOrder()],
        }
        if settings.lora_r:
            alpha = settings.lora_alpha or 0.0
            more["peft_config"] = lora_config(model, settings.lora_r, alpha, settings.lora_dropout)
        trainer = self.trainer(model, arguments, more)
        check_lora(trainer.model)
        return trainer

    @abc.abstractmethod
    def trainer(self, model: Any, arguments: dict[str, Any], more: dict[str, Any]) -> Any:
        """TRL's trainer.

        Args:
            model: in float32; changed in place.
            arguments: of its config.
            more: its own arguments.
        """

    def take_up(self, folder: TunedPolicyFolder) -> dict[str, float]:
        """Read what an earlier part of the run left beside checkpoints; its seconds by phase."""
        self._state = BeforeTraining.read(folder.checkpoints)
        return self._state.seconds

    def save_progress(self, folder: TunedPolicyFolder) -> None:
        """Write what a resumed run takes up, just before training."""
        self._state.save(folder.checkpoints)

    # Measuring

    @abc.abstractmethod
    def likelihoods(self, model: Any, dtype: str, progress: Any) -> Found:
        """Likelihoods of the held-out rows; `progress` is told how many sequences more are done."""

    def measure(self, model: Any, dtype: str) -> Found:
        """Likelihoods of the held-out rows."""
        return self.likelihoods(model, dtype, lambda done: None)

    def measure_before(self, model: Any) -> Found:
        """Likelihoods by the first policy, unless an earlier part of the run knows."""
        if self._state.before:
            self.reference = self.measured.from_tree(self._state.before)
        else:
            self.reference = self.measure_first(model)
            self._state.before = self.reference.tree()
            self._state.answers = answer_prompts(model, self.inputs, self.processes)
        return self.reference

    def measure_first(self, model: Any) -> Found:
        """Likelihoods by the first policy, with a bar."""
        return self._with_bar(model, self.settings.dtype, "measuring the policy as it is")

    def measure_after(self, model: Any) -> Found:
        """Likelihoods by the trained policy, as it is saved, and its answers."""
        found = self._with_bar(model, self.settings.saved_dtype, "measuring what it learned")
        self._answers = answer_prompts(model, self.inputs, self.processes)
        return found

    def _with_bar(self, model: Any, dtype: str, words: str) -> Found:
        sequences = len(self.inputs.eval.rows) * self.sequences
        with Bar(self.console, words, sequences, transient=True) as bar:
            return self.likelihoods(model, dtype, lambda done: bar.advance(bar.task_ids[0], done))

    # The result

    @abc.abstractmethod
    def measures(self, now: Found) -> dict[str, Any]:
        """What summary.json says of the held-out rows."""

    @abc.abstractmethod
    def differences(self, now: Found) -> dict[str, Any]:
        """after − before, row by row, with its interval."""

    @abc.abstractmethod
    def group_measures(self, now: Found, places: list[int]) -> dict[str, Any]:
        """What summary.json says of the rows of one group."""

    @abc.abstractmethod
    def warnings(self, now: Found) -> list[str]:
        """What a person should know before using the policy."""

    def summary(self, outcome: TrainingOutcome[Found]) -> dict[str, Any]:
        """What goes into summary.json but for the seconds, which go on."""
        settings, now, rows = self.settings, outcome.after, outcome.rows
        return {
            "algorithm": settings.algorithm,
            "policy": settings.policy,
            "steps": outcome.steps,
            "seed": settings.seed,
            "before": self.measures(self.reference),
            "after": self.measures(now),
            "difference": self.differences(now),
            "subgroups": measured_by_group(
                self.inputs.subgroups, lambda places: self.group_measures(now, places)
            ),
            "evaluations": [dict(row) for row in rows if "eval_nll" in row],
            "tokens": int(max((row.get("tokens", 0) for row in rows), default=0)),
            "rows": len(self.inputs.train.rows),
            "data": self.inputs.counts(),
            "processes": self.processes.world_size,
            "warnings": self.warnings(now),
        }

    def draw(self, folder: Path, rows: Sequence[dict[str, Any]], found: Found) -> None:
        """Draw the run's pictures into a folder, which is made."""
        draw_plots(folder, rows, None)

    def save(
        self,
        folder: TunedPolicyFolder,
        outcome: TrainingOutcome[Found],
        summary: dict[str, Any],
        seconds: dict[str, float],
    ) -> None:
        """Write the policy, its answers and the summary, which gets the seconds by phase."""
        answers = [self._state.answers, self._answers]
        write_samples(folder.samples, self.inputs, answers, outcome.steps)
        with timed_phase(seconds, "save"):
            folder.publish_final(lambda part: self._save_model(outcome.model, part))
            self.leave_reward(folder, outcome)
        summary["seconds"] = rounded(seconds | {"train": outcome.train_seconds})
        folder.write_summary(summary)

    def leave_reward(self, folder: TunedPolicyFolder, outcome: TrainingOutcome[Found]) -> None:
        """Write what serves the reward that the policy implies."""

    def _save_model(self, model: Any, folder: Path) -> None:
        model.config.use_cache = True
        # What a tuned model was once sampled with is no reason to refuse to save it.
        model.generation_config.do_sample = model.generation_config.do_sample or any(
            getattr(model.generation_config, name, None) not in (None, default)
            for name, default in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 50))
        )
        model.save_pretrained(folder, safe_serialization=True)
        self.inputs.tokenizer.save_pretrained(folder)
