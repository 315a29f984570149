"""`guerdon train …`. Nothing heavy is imported before the settings are known to be good."""

from __future__ import annotations

import typer

from guerdon.trainer.common.trl.command import add_command
from guerdon.trainer.fine_tune.cli import COMMANDS
from guerdon.trainer.reward.cli import RewardCommand
from guerdon.trainer.rl import cli as rl

app = typer.Typer(
    help="Train models: reward models from preference pairs, policies against rewards.",
    no_args_is_help=True,
)
for command in (RewardCommand(), *COMMANDS):
    add_command(app, command)
rl.register(app)
