"""How the command of every server starts, announces itself, and refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from guerdon.serving.errors import EngineDied, ServiceError
from guerdon.serving.process.ports import Ports
from guerdon.settings import SettingsError

DIED = 1
"""Exit code when nothing can be computed any more."""
REFUSED = 2
"""Exit code when a server cannot start as asked."""

EXIT_CODES = (
    "Exit codes: 0 after a signal and a drain; 1 after an internal error; "
    "2 when it cannot start as asked (the last line says why)."
)


def refuse(command: str, sentence: str, code: int = REFUSED) -> NoReturn:
    """End with one plain sentence, and no traceback."""
    typer.echo(f"{command}: {sentence}", err=True)
    raise typer.Exit(code)


def serve(command: str, run: Callable[[], None]) -> None:
    """Run a server; what cannot be is one plain sentence."""
    try:
        run()
    except (SettingsError, ServiceError, OSError) as error:
        refuse(command, str(error))
    except EngineDied as error:
        refuse(command, str(error), DIED)


def announce(ports: Ports, what: str, ready_file: Path | None) -> None:
    """Tell scripts (the file appears whole) and people that work is accepted."""
    if ready_file is not None:
        part = ready_file.with_name(ready_file.name + ".part")
        part.write_text(ports.to_json(), encoding="utf-8")
        part.replace(ready_file)
    typer.echo(ports.sentence(what))
    sys.stdout.flush()
