"""`guerdon serve`: the services, found by entry point and loaded only when asked for."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import typer
import typer.main

from guerdon.cli.help_texts import asks_for_help, unwrap

GROUP = "guerdon.services"
"""The entry-point group: `name = module:typer_app` becomes `guerdon serve name …`."""

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
        app.command(entry.name, help=_summary(entry), context_settings=_PASS_ON)(_command(entry))
    return app


def _serve() -> None:
    """Run a server in the foreground until SIGTERM."""


def _summary(entry: EntryPoint) -> str:
    """The first line of the docstring of a service's module, which is not imported for it."""
    try:
        spec = find_spec(entry.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        return f"Added by {entry.module}."
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else f"Added by {entry.module}."


def _command(entry: EntryPoint) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        command = entry.load()
        if isinstance(command, typer.Typer) and asks_for_help(context.args):
            command = typer.main.get_command(command)
            unwrap(command)
        command(context.args, prog_name=context.command_path)

    return run


app = new_app()
