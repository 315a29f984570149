"""`guerdon train …`. Nothing heavy is imported before the settings are known to be good."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.cli.errors import CommandError, ExitCode
from guerdon.trainer.errors import DataError, OutputError, SettingsError, TrainingError
from guerdon.trainer.rl.cli import register
from guerdon.trainer.settings import RewardSettings, load_settings

app = typer.Typer(
    help="Train models: reward models from preference pairs, policies against rewards.",
    no_args_is_help=True,
)


@app.command("reward")
def reward(
    base: Annotated[str | None, typer.Option(help="Folder, hub name or embedded model.")] = None,
    train: Annotated[str | None, typer.Option(help="JSONL(.gz) file or `datasets` name.")] = None,
    eval_: Annotated[str | None, typer.Option("--eval", help="The same, held out.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run and the model.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, train nothing.")] = False,
    train_split: Annotated[str | None, typer.Option(help="Of a `datasets` set.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Of a `datasets` set.")] = None,
    chat_template: Annotated[str | None, typer.Option(help="Jinja file to use instead.")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on the first so many pairs.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="The same for evaluation.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of prompt and answer.")] = None,
    too_long: Annotated[str | None, typer.Option(help="drop or error.")] = None,
    bad_rows: Annotated[str | None, typer.Option(help="stop or skip.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a batch.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches in a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's.")] = None,
    max_grad_norm: Annotated[float | None, typer.Option(help="Gradient clipping.")] = None,
    center: Annotated[float | None, typer.Option(help="Keeps rewards around zero.")] = None,
    freeze_layers: Annotated[int | None, typer.Option(help="Lowest layers kept.")] = None,
    lora_r: Annotated[int | None, typer.Option(help="Rank of LoRA; 0 trains all.")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="Default: twice the rank.")] = None,
    lora_dropout: Annotated[float | None, typer.Option(help="Of LoRA.")] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, more time."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32.")] = None,
    save_dtype: Annotated[str | None, typer.Option(help="auto is that of --dtype.")] = None,
    share_prompts: Annotated[str | None, typer.Option(help="auto, on or off.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of head, order and dropout.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between logged lines.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    eval_before: Annotated[
        bool | None, typer.Option("--eval-before/--no-eval-before", help="Evaluate first.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps; 0 for none.")] = None,
    keep_checkpoints: Annotated[
        bool | None,
        typer.Option("--keep-checkpoints/--no-keep-checkpoints", help="Keep the last one."),
    ] = None,
    stats_pairs: Annotated[int | None, typer.Option(help="For the mean and std.")] = None,
    plots: Annotated[bool | None, typer.Option("--plots/--no-plots", help="Draw.")] = None,
) -> None:
    """Train a reward model on preference pairs. Every option is also a key of the config file."""
    given = dict(locals())
    given["eval"] = given.pop("eval_")
    given["output"] = str(output) if output else None
    for name in ("config", "resume", "overwrite", "dry_run"):
        del given[name]
    try:
        settings = load_settings(config, given)
        _run(settings, resume=resume, overwrite=overwrite, dry_run=dry_run)
    except (SettingsError, DataError, OutputError) as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except TrainingError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error


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


register(app)
