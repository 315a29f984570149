"""The command-line options that every server has, made from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from guerdon.cli.settings_options import add_options, setting_options
from guerdon.serving.config import ServerSettings

Config = Annotated[Path | None, typer.Option(help="TOML file with the same settings; flags win.")]

LISTENING = ("host", "port", "http_port", "metrics_port")
ENDING = ("lame_duck", "drain_grace", "ready_file", "log_level", "access_log")
SECURITY = (
    "tls_certificate", "tls_key", "tls_client_ca", "tokens", "token_file", "admin_token_file",
)  # fmt: skip


def server_options(
    kind: type[ServerSettings],
    panels: Mapping[str, Sequence[str]],
    other: Mapping[str, Mapping[str, str]],
) -> Callable[[Callable[..., None]], Any]:
    """A decorator that gives a server's command the options of its settings, after its own.

    The command gets what was given as its first argument, a dict as the settings' `load` takes it.

    Args:
        panels: heading of the help to settings; see `setting_options`.
        other: what is not as the settings have it.
    """
    return add_options(setting_options(kind, panels, other=other, switches=True), own_first=True)
