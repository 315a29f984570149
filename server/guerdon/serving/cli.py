"""`guerdon serve`: the services, found by entry point and loaded only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import typer
import typer.main

from guerdon.cli.help_texts import asks_for_help, unwrap

GROUP = "guerdon.services"
"""The entry-point group: `name = module:typer_app` becomes `guerdon serve name …`."""

_HELP = {
    "reward": "Serve reward models over gRPC, with HTTP beside it.",
    "sampler": "Sample a policy over gRPC, with HTTP beside it; its weights may change meanwhile.",
}
"""Help of our own services, so that `guerdon serve --help` imports none of them."""

# The service's own command parses the arguments, so that nothing of it is loaded for others.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def new_app() -> typer.Typer:
    """The command `guerdon serve`, with the services of all installed distributions."""
    app = typer.Typer(
        name="serve",
        help="Run a server in the foreground until SIGTERM.",
        no_args_is_help=True,
        add_completion=False,
    )
    app.callback()(_serve)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        summary = _HELP.get(entry.name, f"Added by {entry.module}.")
        app.command(entry.name, help=summary, context_settings=_PASS_ON)(_command(entry))
    return app


def _serve() -> None:
    """Run a server in the foreground until SIGTERM."""


def _command(entry: EntryPoint) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        command = typer.main.get_command(entry.load())
        if asks_for_help(context.args):
            unwrap(command)
        command(context.args, prog_name=context.command_path)

    return run


app = new_app()
