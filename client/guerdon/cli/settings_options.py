"""Command-line options made from a settings dataclass: help from docstrings, defaults from fields.

What is not given on the command line is None (a repeatable option: an empty list), so that the
config file's value, and then the default, holds.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import typing
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, cast

import typer

from guerdon.settings import field_types, required


def field_docs(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field, as one line; a class's own win over its bases'."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            found.update(_own_docs(owner))
    return found


@functools.cache
def _own_docs(owner: Hashable) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cast(type, owner)))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        match node, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


def field_default(owner: type[Any], name: str) -> Any:
    """The default of a field, in words where `shown_defaults` of its class has some for it."""
    shown: dict[str, str] = getattr(owner, "shown_defaults", dict)()
    if name in shown:
        return shown[name]
    return next(field.default for field in dataclasses.fields(owner) if field.name == name)


def setting_options(
    kind: type[Any],
    panels: Mapping[str, Sequence[str]],
    *,
    other: Mapping[str, Mapping[str, str]] | None = None,
    switches: bool = False,
) -> dict[str, inspect.Parameter]:
    """A keyword-only parameter for each setting that the panels name, as typer reads it.

    Args:
        panels: heading of the help (empty: the usual one) to settings: names of fields,
            `table.name` for a field of a dataclass in a field.
        other: what is not as the field has it, by setting: its `flag`, `help` or `metavar`.
        switches: whether what is off has an option to switch it on and none for off, and only
            values are shown as defaults.
    """
    found = {}
    for heading, key in ((heading, key) for heading, keys in panels.items() for key in keys):
        owner, (*tables, name) = kind, key.split(".")
        for table in tables:
            owner = field_types(owner)[table]
        default = field_default(owner, name)
        given = {**(other or {}).get(key, {})}
        text = given.pop("help", None) or field_docs(owner)[name]
        off = switches and default is False
        option = typer.Option(
            given.pop("flag", None) or _flag(name, field_types(owner)[name], one_way=off),
            help=text + _note(text, default, needed=name in required(owner), values_only=switches),
            rich_help_panel=heading or None,
            show_default=False,
            metavar=given.pop("metavar", None),
        )
        assert not given, given
        found[key] = inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[_given(field_types(owner)[name]), option],
        )
    return found


def _flag(name: str, kind: Any, *, one_way: bool) -> str:
    words = name.replace("_", "-")
    return f"--{words}/--no-{words}" if kind is bool and not one_way else f"--{words}"


def _given(kind: Any) -> Any:
    """The option's type: the field's, or nothing."""
    if typing.get_origin(kind) is tuple:
        return list[typing.get_args(kind)[0]] | None  # type: ignore[misc]
    return kind | None


def _note(text: str, default: Any, *, needed: bool, values_only: bool) -> str:
    if default is None or "(default: " in text:  # the text says what happens then
        return ""
    if values_only and (isinstance(default, bool) or default in ("", (), -1)):
        return ""
    return f" [dim]({'needed' if needed else f'default: {_shown(default)}'})[/dim]"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in ("", ()):
        return "none"
    return f"{default:g}" if isinstance(default, float) else str(default)
