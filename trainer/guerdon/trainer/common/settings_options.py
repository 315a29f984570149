"""Command-line options made from a settings dataclass: one for each field, with its docstring.

What is not given on the command line is None (a repeatable option: an empty list), so that the
config file's value, and then the default, holds.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.cli.errors import CommandError, ExitCode
from guerdon.trainer.common.errors import (
    DataError,
    OutputError,
    SaidElsewhere,
    ServiceGone,
    SettingsError,
    TrainingError,
)
from guerdon.trainer.common.settings_io import field_docs, field_types, required

Panels = Mapping[str, Sequence[str]]

Config = Annotated[Path | None, typer.Option(help="TOML file with any of these.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
"""The options that every recipe has beside its settings."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """What can go wrong in training, as one sentence and an exit code.

    Raises:
        CommandError: in place of a `TrainingError`.
        typer.Exit: where another process of the run says the sentence.
    """
    try:
        yield
    except SaidElsewhere as error:
        raise typer.Exit(ExitCode.FAILED) from error
    except (SettingsError, DataError, OutputError) as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except ServiceGone as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error
    except TrainingError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error


def add_settings(kind: type[Any], panels: Panels) -> Callable[[Callable[..., None]], Any]:
    """A decorator that gives a typer command an option for every field of a dataclass.

    The command gets what was given as its first argument, a dict by the fields' names; its own
    options come after it, as keyword-only arguments.

    Args:
        kind: the settings.
        panels: heading of the help to names of fields; names that the class lacks are passed over.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        names = tuple(field_types(kind))
        own = list(inspect.signature(function).parameters.values())[1:]
        hints = typing.get_type_hints(function, include_extras=True)

        def command(**given: Any) -> None:
            values = {name: given.pop(name) for name in names}
            function(values, **given)

        options = setting_options(kind, panels)
        parameters = [*options, *(p.replace(annotation=hints[p.name]) for p in own)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        command.__name__ = function.__name__
        return command

    return decorate


def setting_options(kind: type[Any], panels: Panels) -> list[inspect.Parameter]:
    """A keyword-only parameter for each field, as typer reads it, by panels."""
    types, docs, needed = field_types(kind), field_docs(kind), required(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    ordered = [name for names in panels.values() for name in names if name in types]
    assert sorted(ordered) == sorted(types), set(types) ^ set(ordered)
    headings = {name: heading for heading, names in panels.items() for name in names}
    found = []
    for name in ordered:
        note = _note(name in needed, defaults[name])
        option = typer.Option(
            _flag(name, types[name]),
            help=f"{docs[name]}{note}",
            rich_help_panel=headings[name],
            show_default=False,
        )
        found.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_given(types[name]), option],
            )
        )
    return found


def _flag(name: str, kind: Any) -> str:
    words = name.replace("_", "-")
    return f"--{words}/--no-{words}" if kind is bool else f"--{words}"


def _given(kind: Any) -> Any:
    """The option's type: the field's, or nothing."""
    if typing.get_origin(kind) is tuple:
        return list[typing.get_args(kind)[0]] | None  # type: ignore[misc]
    return kind | None


def _note(needed: bool, default: Any) -> str:
    if default is None:  # the docstring says what happens then
        return ""
    return f" [dim]({'needed' if needed else f'default: {_shown(default)}'})[/dim]"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in ("", ()):
        return "none"
    return f"{default:g}" if isinstance(default, float) else str(default)
