"""The command of a recipe: its settings as options, those beside them, its errors in a sentence."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.cli.errors import CommandError, ExitCode
from guerdon.cli.options import add_options
from guerdon.cli.settings_options import setting_options
from guerdon.settings import field_types, load
from guerdon.trainer.common.errors import (
    DataError,
    OutputError,
    SaidElsewhere,
    ServiceGone,
    SettingsError,
    TrainingError,
)

Config = Annotated[Path | None, typer.Option(help="TOML file with any of these.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
"""The options that every recipe has beside its settings."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """What can go wrong in training, as one sentence and an exit code.

    Raises:
        CommandError: in place of a `TrainingError` or `SettingsError`.
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


def recipe_command(
    kind: type[Any],
    panels: Mapping[str, Sequence[str]],
    read: Callable[[Path | None, Mapping[str, Any]], Any] | None = None,
) -> Callable[[Callable[..., None]], Any]:
    """A decorator for a recipe's command: it gets `settings`, from --config and the command line.

    What goes wrong in it is said by `plain_errors`.

    Args:
        kind: the settings; every field is an option.
        panels: heading of the help to names of fields; names that the class lacks are passed over.
        read: makes the settings of the file and of what was given, if not of `kind`.
    """
    types = field_types(kind)
    known = {heading: [n for n in names if n in types] for heading, names in panels.items()}
    ordered = [name for names in known.values() for name in names]
    assert sorted(ordered) == sorted(types), set(types) ^ set(ordered)
    config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None)
    options = setting_options(kind, known) | {"config": config.replace(annotation=Config)}
    read = read or functools.partial(load, kind)

    def gather(values: dict[str, Any]) -> Any:
        return read(values.pop("config"), values)

    return lambda command: plain_errors()(add_options(options, "settings", gather)(command))
