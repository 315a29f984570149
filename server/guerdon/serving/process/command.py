"""The command of every server: its options, how it starts, announces itself, and refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from guerdon.cli.options import add_options
from guerdon.cli.settings_options import setting_options
from guerdon.serving.config import ServerSettings
from guerdon.serving.errors import EngineDied, ServiceError
from guerdon.settings import SettingsError

if TYPE_CHECKING:  # the sockets are not needed for a command's help
    from guerdon.serving.process.listening import Ports

DIED = 1
"""Exit code when nothing can be computed any more."""
REFUSED = 2
"""Exit code when a server cannot start as asked."""

EXIT_CODES = (
    "Exit codes: 0 after a signal and a drain; 1 after an internal error; "
    "2 when it cannot start as asked (the last line says why)."
)

Config = Annotated[Path | None, typer.Option(help="TOML file with the same settings; flags win.")]

LISTENING = ("host", "port", "http_port", "metrics_port")
ENDING = ("lame_duck", "drain_grace", "ready_file", "log_level", "access_log")
SECURITY = (
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "tokens",
    "token_file",
    "admin_token_file",
)


def server_options(
    kind: type[ServerSettings],
    panels: Mapping[str, Sequence[str]],
    other: Mapping[str, Mapping[str, str]],
) -> Callable[[Callable[..., None]], Any]:
    """A decorator that gives a server's command the options of its settings, after its own.

    The command gets what was given as `flags`, a dict as `load_settings` takes it.

    Args:
        panels: heading of the help to settings; see `setting_options`.
        other: what is not as the settings have it.
    """
    return add_options(
        setting_options(kind, panels, other=other, switches=True), "flags", last=True
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
