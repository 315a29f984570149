"""The command-line options that every server has, with the same words.

def command(host: Host = None, port: Annotated[int | None, port_option(50051)] = None, …)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

_SECURITY = "Security"

SHARED = (
    "host", "port", "http_port", "metrics_port", "tls_certificate", "tls_key", "tls_client_ca",
    "tokens", "token_file", "admin_token_file", "lame_duck", "drain_grace", "ready_file",
    "log_level", "access_log",
)  # fmt: skip
"""The names of these options, which are those of `ServerSettings`."""

Config = Annotated[Path | None, typer.Option(help="TOML file with the same settings; flags win.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")]
TlsCertificate = Annotated[Path | None, typer.Option(help="PEM file.", rich_help_panel=_SECURITY)]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file.", rich_help_panel=_SECURITY)]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        help="PEM file: clients must show a certificate it signed.", rich_help_panel=_SECURITY
    ),
]
Tokens = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of named callers: their tokens, roles, classes, shares and limits.",
        rich_help_panel=_SECURITY,
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        help="Metrics and probes on this port, over plain HTTP whatever the others use; 0 picks a "
        "free one. (default: on the HTTP port)"
    ),
]
LameDuck = Annotated[
    float | None,
    typer.Option(
        help="Seconds after SIGTERM in which calls are still taken while health says "
        "NOT_SERVING. (default: 0)"
    ),
]
DrainGrace = Annotated[
    float | None,
    typer.Option(help="Seconds that accepted work gets after SIGTERM. (default: 30)"),
]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Write the real ports here as JSON when ready.")
]
AccessLog = Annotated[
    bool | None,
    typer.Option("--access-log", help="Log every call, with its caller, status and seconds."),
]
LogLevel = Annotated[
    str | None, typer.Option(help="debug, info, warning or error. (default: info)")
]


def port_option(default: int) -> Any:
    """`--port`."""
    return typer.Option(help=f"gRPC port; 0 picks a free one. (default: {default})")


def http_port_option(default: int) -> Any:
    """`--http-port`."""
    return typer.Option(help=f"HTTP port; 0 picks a free one, -1 serves none. (default: {default})")


def token_option(what_for: str) -> Any:
    """`--token-file`."""
    return typer.Option(
        help=f"Holds the bearer token for {what_for}; else $GUERDON_TOKEN.",
        rich_help_panel=_SECURITY,
    )


def admin_token_option(what_for: str = "") -> Any:
    """`--admin-token-file`."""
    purpose = f" for {what_for}" if what_for else ""
    return typer.Option(
        help=f"Holds the admin token{purpose}; else $GUERDON_ADMIN_TOKEN.",
        rich_help_panel=_SECURITY,
    )


def pick(given: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The arguments of a command whose settings have the same name."""
    return {name: given[name] for name in (*SHARED, *more)}
