"""`guerdon serve`: the servers. Each is loaded only when it is asked for."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="serve",
    help="Run a server in the foreground until SIGTERM.",
    no_args_is_help=True,
    add_completion=False,
)

# The service's own command parses the arguments, so that nothing of it is loaded for others.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def serve() -> None:
    """Run a server in the foreground until SIGTERM."""


@app.command(context_settings=_PASS_ON)
def reward(context: typer.Context) -> None:
    """Serve reward models over gRPC, with HTTP beside it."""
    from guerdon.reward.cli import app as reward_app

    reward_app(context.args, prog_name=f"{context.command_path}")


@app.command(context_settings=_PASS_ON)
def sampler(context: typer.Context) -> None:
    """Sample a policy over gRPC, with HTTP beside it; its weights may change meanwhile."""
    from guerdon.sampler.cli import app as sampler_app

    sampler_app(context.args, prog_name=f"{context.command_path}")
