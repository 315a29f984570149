"""`guerdon train reward`. Nothing heavy is imported before the settings are known to be good."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guerdon.trainer.common.trl.command import FineTuneCommand
from guerdon.trainer.reward.settings import AllSettings, RewardModelSettings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from guerdon.trainer.common.process_group import ProcessGroup
    from guerdon.trainer.common.trl.folder import FineTuneFolder
    from guerdon.trainer.reward.objectives.task import RewardTask

PANELS: dict[str, tuple[str, ...]] = {
    "The run": ("objective", "base", "train", "eval", "output", "seed"),
    "With --objective preference only": (
        "center", "margin_key", "share_prompts", "ensemble", "aggregation", "std_weight",
    ),
    "With --objective attributes only": ("attribute",),
    "With --objective process only": ("step_marker", "step_aggregation"),
    "Data": (
        "train_split", "eval_split", "chat_template", "limit", "eval_limit", "max_length",
        "too_long", "bad_rows",
    ),
    "Optimiser": (
        "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "max_grad_norm",
        "freeze_layers", "lora_r", "lora_alpha", "lora_dropout",
    ),
    "Memory and speed": ("dtype", "save_dtype", "gradient_checkpointing"),
    "Measuring": (
        "log_every", "eval_every", "eval_before", "checkpoint_every", "keep_checkpoints",
        "stats_pairs", "by", "tracker", "plots",
    ),
}  # fmt: skip
"""Headings of `guerdon train reward --help`."""

_HELP = """Train a reward model: on preference pairs, ratings, or right and wrong steps.

preference: rows with chosen and rejected, perhaps prompt and a margin.

attributes: rows with prompt and response (or messages), and attributes (numbers by name).

process: rows with prompt, completions (the steps) and labels (true or false).

Every option is also a key of the TOML file that --config names, with _ for -; the command
line wins. An option of another objective is an error."""


class RewardCommand(FineTuneCommand):
    """`guerdon train reward`: one model, or an ensemble of them."""

    options = AllSettings
    panels = PANELS
    help = _HELP
    dry_run_help = "Check all, train nothing."

    def load(self, config: Path | None, given: Mapping[str, Any]) -> RewardModelSettings:
        """The settings of the objective that is asked for."""
        return load_settings(config, given)

    def folder(self, settings: RewardModelSettings) -> type[FineTuneFolder]:
        """The kind of folder that one model or an ensemble has."""
        from guerdon.trainer.reward.folder import EnsembleFolder, RewardFolder

        return EnsembleFolder if getattr(settings, "ensemble", 0) else RewardFolder

    def read_task(self, settings: RewardModelSettings) -> RewardTask[Any]:
        """Load and check the data and the tokenizer."""
        from guerdon.trainer.reward.objectives.read_task import read_task

        return read_task(settings)

    def train(
        self, task: Any, folder: Any, console: Console, processes: ProcessGroup
    ) -> dict[str, Any]:
        """Train one model, or an ensemble of them; the summary."""
        from guerdon.trainer.reward.folder import EnsembleFolder

        if not isinstance(folder, EnsembleFolder):
            return super().train(task, folder, console, processes)
        from guerdon.trainer.reward.ensemble import train_ensemble

        return train_ensemble(task, folder, console, processes)

    def show_summary(self, summary: dict[str, Any], folder: Any, console: Console) -> None:
        """Show the measures as a table, and how the model is served."""
        from guerdon.trainer.reward.report import show_summary

        show_summary(summary, folder, console)
