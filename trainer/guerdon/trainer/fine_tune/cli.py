"""`guerdon train sft|dpo|orpo`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from guerdon.trainer.common import settings_io
from guerdon.trainer.common.processes import is_main, start
from guerdon.trainer.common.settings_options import (
    Config,
    Overwrite,
    Resume,
    add_settings,
    plain_errors,
)
from guerdon.trainer.fine_tune.settings import (
    AlignSettings,
    DPOSettings,
    ORPOSettings,
    SFTSettings,
)

PANELS: dict[str, tuple[str, ...]] = {
    "The run": ("policy", "train", "eval", "output", "seed"),
    "Data": (
        "train_split", "eval_split", "chat_template", "limit", "eval_limit", "max_length",
        "too_long", "bad_rows",
    ),
    "The loss": ("beta", "loss", "label_smoothing", "odds_weight", "precompute_reference"),
    "Optimiser": (
        "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "max_grad_norm",
        "lora_r", "lora_alpha", "lora_dropout",
    ),
    "Memory and speed": ("dtype", "save_dtype", "gradient_checkpointing", "packing"),
    "Measuring": (
        "log_every", "eval_every", "by", "checkpoint_every", "keep_checkpoints",
        "sample_prompts", "sample_tokens", "tracker", "plots",
    ),
}  # fmt: skip
"""Headings of `--help`, in this order; every field of every settings class is under one."""

RECIPES: dict[type[AlignSettings], str] = {
    SFTSettings: "Fine-tune a policy on answers: instruction tuning, prompts without loss.",
    DPOSettings: "Train a policy on preference pairs by DPO, against a frozen reference.",
    ORPOSettings: "Train a policy on preference pairs by ORPO: likelihood and odds, no reference.",
}

_DETAILS = """

Every option is also a key of the TOML file that --config names, with _ for -; the command line
wins. No service is needed."""


def register(app: typer.Typer) -> None:
    """Add the commands to `guerdon train`."""
    for kind, summary in RECIPES.items():
        app.command(kind.algorithm, help=summary + _DETAILS)(_command(kind))


def _command(kind: type[AlignSettings]) -> Any:
    @add_settings(kind, PANELS)
    def command(
        given: dict[str, Any],
        *,
        config: Config = None,
        resume: Resume = False,
        overwrite: Overwrite = False,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Check the data, show settings and memory, and train nothing."
            ),
        ] = False,
    ) -> None:
        with plain_errors():
            settings = settings_io.load(kind, config, given)
            _run(settings, resume=resume, overwrite=overwrite, dry_run=dry_run)

    return command


def _run(settings: AlignSettings, *, resume: bool, overwrite: bool, dry_run: bool) -> None:
    from rich.console import Console

    from guerdon.trainer.common.trackers import check_trackers
    from guerdon.trainer.fine_tune.folder import AlignFolder
    from guerdon.trainer.fine_tune.report import show_summary

    main = is_main()
    console = Console(stderr=not sys.stdout.isatty(), quiet=not main)
    if dry_run:
        if main:
            check_trackers(settings.tracker)
            _dry_run(settings, console)
        return
    with start() as processes:
        with processes.agreed():
            check_trackers(settings.tracker)
            folder = AlignFolder(settings, resume=resume, overwrite=overwrite, main=main)
        if processes.gather(folder.finished and not overwrite)[0]:
            console.print("this run ended already")
            show_summary(folder.summary(), folder, console)
            return

        from guerdon.trainer.common.trl.recipe import fine_tune
        from guerdon.trainer.fine_tune.read import read_task

        with processes.agreed():
            task = read_task(settings)
        task.show_counts(console)
        summary = fine_tune(task, folder, console, processes)
    if main:
        show_summary(summary, folder, console)


def _dry_run(settings: AlignSettings, console: Any) -> None:
    from guerdon.trainer.fine_tune.read import read_task

    task = read_task(settings)
    task.show_counts(console)
    typer.echo(settings_io.to_toml(settings))  # alone on standard output: it can be a file
    task.show_memory(console)
