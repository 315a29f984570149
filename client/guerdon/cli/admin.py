"""`guerdon admin`: load, name and swap models while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from guerdon.cli import options as opt
from guerdon.cli.errors import EPILOG, CommandError, ExitCode

if TYPE_CHECKING:
    from guerdon.cli.connection import ServerOptions

app = typer.Typer(
    help="Load, unload, alias and promote models on a running server.",
    epilog=EPILOG,
    no_args_is_help=True,
)

_Timeout = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.001, help="Time allowed; loading takes a while.")
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]


@app.command("load", epilog=EPILOG)
@opt.connects(timeout=600.0, server=opt.AdminServer, token=opt.AdminToken, limit=_Timeout)
def load(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name to serve it under.")],
    path: Annotated[str, typer.Argument(help="A folder on the server, or a model's name.")],
    promote: Annotated[bool, typer.Option("--promote", help="Serve it at once.")] = False,
    connection: ServerOptions,
) -> None:
    """Load a checkpoint as a revision of a model."""
    with connection.admin() as client:
        model = client.load_model(name, path, promote=promote)
    state = "serving" if model.current else "loaded; `guerdon admin promote` makes it serve"
    typer.echo(f"{model.pinned} {state}")


@app.command("unload", epilog=EPILOG)
@opt.connects(timeout=600.0, server=opt.AdminServer, token=opt.AdminToken, limit=_Timeout)
def unload(
    *,
    name: _Name,
    revision: Annotated[str, typer.Option(help="A revision; all of them when not given.")] = "",
    connection: ServerOptions,
) -> None:
    """Unload a model, after the work accepted for it has finished."""
    with connection.admin() as client:
        for gone in client.unload_model(name, revision):
            typer.echo(f"{name}@{gone} unloaded")


@app.command("alias", epilog=EPILOG)
@opt.connects(timeout=30.0, server=opt.AdminServer, token=opt.AdminToken, limit=_Timeout)
def alias(
    *,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The other name.")],
    target: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The model it is to mean.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias.")] = False,
    connection: ServerOptions,
) -> None:
    """Give a model another name, or take it away."""
    if delete is (target is not None):
        raise CommandError("Give the model's name, or --delete.", ExitCode.USAGE)
    with connection.admin() as client:
        if target is None:
            client.delete_alias(name)
        else:
            client.set_alias(name, target)
    typer.echo(f"{name} removed" if target is None else f"{name} means {target}")


@app.command("promote", epilog=EPILOG)
@opt.connects(timeout=600.0, server=opt.AdminServer, token=opt.AdminToken, limit=_Timeout)
def promote(
    *,
    name: _Name,
    revision: Annotated[
        str, typer.Argument(help="A loaded revision, or at least its first 8 characters.")
    ],
    unload_previous: Annotated[
        bool, typer.Option("--unload-previous", help="Unload the former one when it is idle.")
    ] = False,
    connection: ServerOptions,
) -> None:
    """Make a loaded revision the one that its name serves; nothing is dropped."""
    with connection.admin() as client:
        done = client.promote_model(name, revision, unload_previous=unload_previous)
    typer.echo(f"{name}: {done.previous_revision} -> {done.model.revision}")
