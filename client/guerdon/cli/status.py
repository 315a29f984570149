"""`guerdon models`, `policy` and `health`: what a server holds, and whether it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guerdon.cli import options as opt
from guerdon.cli.errors import ExitCode

if TYPE_CHECKING:
    from guerdon.cli.connection import ServerOptions


@opt.connects(timeout=10.0)
def models(
    *,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One model, by name, alias or name@revision."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON: a list, or one object for NAME.")
    ] = False,
    connection: ServerOptions,
) -> None:
    """List the models that a server holds, or describe one."""
    import json

    found = asyncio.run(_models(connection, name))
    if as_json:
        shown: Any = found if name is None else found[0]
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    elif name is not None:
        _describe(found[0])
    else:
        _list(found)


@opt.connects(timeout=5.0)
def health(*, connection: ServerOptions) -> ExitCode:
    """Say whether a server takes requests: exit code 0 if it does, 1 if not, 3 if not there."""
    serving = asyncio.run(_health(connection))
    typer.echo("serving" if serving else "not serving")
    return ExitCode.OK if serving else ExitCode.FAILED


@opt.connects(timeout=10.0, server=opt.Sampler)
def policy(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON: one object.")] = False,
    connection: ServerOptions,
) -> None:
    """Describe the policy that a sampler serves: its weights, its limits, its load."""
    import json

    with connection.policy() as client:
        found = asdict(client.get_policy())
    found["weight_sha256"] = found["weight_sha256"].hex()
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _describe(found)


async def _models(connection: ServerOptions, name: str | None) -> list[dict[str, Any]]:
    async with connection.open() as client:
        found = await client.list_models() if name is None else [await client.get_model(name)]
    return [asdict(info) for info in found]


async def _health(connection: ServerOptions) -> bool:
    async with connection.open() as client:
        return bool(await client.health())


def _list(found: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        typer.echo("No model is loaded.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "revision", "kind", "tokens", "dtype", "device", "mode", "aliases"):
        table.add_column(heading, overflow="fold")
    for info in found:
        cells = (
            info["name"] + ("" if info["current"] else " (not current)"),
            info["revision"][:12],
            info["kind"],
            str(info["max_tokens"]),
            info["dtype"],
            info["device"],
            info["compute_mode"],
            ", ".join(info["aliases"]),
        )
        table.add_row(*map(Text, cells))
    Console().print(table)


def _describe(info: dict[str, Any]) -> None:
    for key, value in info.items():
        if value not in ("", (), None):
            shown = ", ".join(map(_shown, value)) if isinstance(value, tuple) else _shown(value)
            typer.echo(f"{key.replace('_', ' '):<22}{shown}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # an attribute
        return f"{value['name']} ({value['weight']:g})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
