"""The options that every recipe has beside its settings, and its errors as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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
