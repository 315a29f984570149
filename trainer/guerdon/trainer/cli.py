"""`guerdon train …`. Nothing heavy is imported before the settings are known to be good."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from guerdon.trainer.common.processes import is_main, start
from guerdon.trainer.common.settings_options import (
    Config,
    Overwrite,
    Resume,
    add_settings,
    plain_errors,
)
from guerdon.trainer.fine_tune import cli as align
from guerdon.trainer.reward.settings import (
    AllSettings,
    RewardModelSettings,
    RewardSettings,
    load_settings,
)
from guerdon.trainer.rl import cli as rl

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

app = typer.Typer(
    help="Train models: reward models from preference pairs, policies against rewards.",
    no_args_is_help=True,
)


@app.command("reward")
@add_settings(AllSettings, PANELS)
def reward(
    given: dict[str, Any],
    *,
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, train nothing.")] = False,
) -> None:
    """Train a reward model: on preference pairs, ratings, or right and wrong steps.

    preference: rows with chosen and rejected, perhaps prompt and a margin.

    attributes: rows with prompt and response (or messages), and attributes (numbers by name).

    process: rows with prompt, completions (the steps) and labels (true or false).

    Every option is also a key of the TOML file that --config names, with _ for -; the command
    line wins. An option of another objective is an error.
    """
    with plain_errors():
        settings = load_settings(config, given)
        _run(settings, resume=resume, overwrite=overwrite, dry_run=dry_run)


def _run(settings: RewardModelSettings, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
    from rich.console import Console

    from guerdon.trainer.common.run_folder import SUMMARY
    from guerdon.trainer.common.trackers import check_trackers
    from guerdon.trainer.reward.folder import EnsembleFolder, RewardFolder
    from guerdon.trainer.reward.report import show_counts, show_summary

    main = is_main()
    console = Console(stderr=not sys.stdout.isatty(), quiet=not main)
    if dry_run:
        if main:
            check_trackers(settings.tracker)
            _dry_run(settings, console)
        return
    ensemble = isinstance(settings, RewardSettings) and settings.ensemble
    kind = EnsembleFolder if ensemble else RewardFolder
    with start() as processes:
        with processes.agreed():
            check_trackers(settings.tracker)
            folder = kind(settings, resume=resume, overwrite=overwrite, main=main)
        if processes.gather(folder.finished and not overwrite)[0]:
            console.print("this run ended already")
            if main:
                found: dict[str, Any] = json.loads((folder.path / SUMMARY).read_text("utf-8"))
                show_summary(found, folder, console)
            return

        from guerdon.trainer.reward.objectives.read import read_task

        with processes.agreed():
            task = read_task(settings)
        show_counts(task.counts(), console)
        if isinstance(folder, EnsembleFolder):
            from guerdon.trainer.reward.ensemble import train_ensemble

            summary = train_ensemble(task, folder, console, processes)
        else:
            from guerdon.trainer.common.trl.recipe import fine_tune

            summary = fine_tune(task, folder, console, processes)
    if main:
        show_summary(summary, folder, console)


def _dry_run(settings: RewardModelSettings, console: Any) -> None:
    from guerdon.trainer.reward.objectives.read import read_task
    from guerdon.trainer.reward.report import show_counts

    show_counts(read_task(settings).counts(), console)
    typer.echo(settings.to_toml())  # alone on standard output: it can be a file


align.register(app)
rl.register(app)
