"""`guerdon train …`. Nothing heavy is imported before the settings are known to be good."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from guerdon.trainer.align import cli as align
from guerdon.trainer.rl import cli as rl
from guerdon.trainer.settings import RewardSettings, load_settings
from guerdon.trainer.settings_options import (
    Config,
    Overwrite,
    Resume,
    add_settings,
    plain_errors,
)

PANELS: dict[str, tuple[str, ...]] = {
    "The run": ("base", "train", "eval", "output", "seed"),
    "Data": (
        "train_split", "eval_split", "chat_template", "limit", "eval_limit", "max_length",
        "too_long", "bad_rows",
    ),
    "Optimiser": (
        "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "max_grad_norm",
        "center", "freeze_layers", "lora_r", "lora_alpha", "lora_dropout",
    ),
    "Memory and speed": ("dtype", "save_dtype", "gradient_checkpointing", "share_prompts"),
    "Measuring": (
        "log_every", "eval_every", "eval_before", "checkpoint_every", "keep_checkpoints",
        "stats_pairs", "plots",
    ),
}  # fmt: skip
"""Headings of `guerdon train reward --help`."""

app = typer.Typer(
    help="Train models: reward models from preference pairs, policies against rewards.",
    no_args_is_help=True,
)


@app.command("reward")
@add_settings(RewardSettings, PANELS)
def reward(
    given: dict[str, Any],
    *,
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, train nothing.")] = False,
) -> None:
    """Train a reward model on preference pairs. Every option is also a key of the config file."""
    with plain_errors():
        settings = load_settings(config, given)
        _run(settings, resume=resume, overwrite=overwrite, dry_run=dry_run)


def _run(settings: RewardSettings, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
    from rich.console import Console

    from guerdon.trainer.report import show_counts, show_summary
    from guerdon.trainer.run_folder import SUMMARY, RewardFolder

    console = Console(stderr=not sys.stdout.isatty())
    if not dry_run:
        folder = RewardFolder(settings, resume=resume, overwrite=overwrite)
        if folder.finished:
            console.print("this run ended already")
            summary: dict[str, Any] = json.loads((folder.path / SUMMARY).read_text("utf-8"))
            show_summary(summary, folder, console)
            return

    from guerdon.trainer.inputs import read_inputs

    inputs = read_inputs(settings)
    show_counts(inputs.counts(), console)
    if dry_run:
        console.print(settings.to_toml(), highlight=False, markup=False)
        return

    from guerdon.trainer.reward import train_reward

    show_summary(train_reward(inputs, folder, console), folder, console)


align.register(app)
rl.register(app)
