"""The settings that every server has: where it listens, what guards it, how it ends.

A service's own settings inherit from these, so that one TOML file and one set of flags hold both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from guerdon.serving.credentials import TLSFiles
from guerdon.settings import not_negative, positive

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings that every server has."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int
    """gRPC port; 0 picks a free one."""
    http_port: int
    """HTTP port; 0 picks a free one, -1 serves none."""
    metrics_port: int = -1
    """Metrics and probes on this port, over plain HTTP whatever the others use; 0 picks a free
    one. (default: on the HTTP port)"""
    tls_certificate: Path | None = None
    """PEM file."""
    tls_key: Path | None = None
    """PEM file."""
    tls_client_ca: Path | None = None
    """PEM file: clients must show a certificate it signed."""
    tokens: Path | None = None
    """TOML file of named callers: their tokens, roles, classes, shares and limits."""
    token_file: Path | None = None
    """Holds the bearer token of callers; else $GUERDON_TOKEN."""
    admin_token_file: Path | None = None
    """Holds the admin token; else $GUERDON_ADMIN_TOKEN."""
    max_message_bytes: int = 16 * MIB
    """Largest gRPC message taken."""
    max_body_bytes: int = 4 * MIB
    """Largest HTTP body taken."""
    http_connections: int = 512
    """Most HTTP connections; an idle one is closed for a new one beyond."""
    max_calls: int = 4096
    """Most gRPC calls being served at a time; beyond, calls are shed."""
    lame_duck: float = 0.0
    """Seconds after SIGTERM in which calls are still taken while health says NOT_SERVING."""
    drain_grace: float = 30.0
    """Seconds that accepted work gets after SIGTERM."""
    ready_file: Path | None = None
    """Write the real ports here as JSON when ready."""
    log_level: str = "info"
    """debug, info, warning or error."""
    access_log: bool = False
    """Log every call, with its caller, status and seconds."""

    def __post_init__(self) -> None:
        self.check_port("port", least=0)
        self.check_port("http_port", least=-1)
        self.check_port("metrics_port", least=-1)
        positive(self, "max_message_bytes", "max_body_bytes", "max_calls", "http_connections")
        not_negative(self, "lame_duck", "drain_grace")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key come together or not at all")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(
                f"log_level is {self.log_level!r}, it must be debug, info, warning or error"
            )

    def check_port(self, name: str, *, least: int) -> None:
        """Refuse a number that is no port."""
        value = getattr(self, name)
        if not least <= value <= 65535:
            raise ValueError(f"{name} is {value}, it must be between {least} and 65535")

    def check_exposure(self, *, admin_token: bool) -> None:
        """Refuse to let other machines do without a credential what a service guards.

        Raises:
            SettingsError: they could.
        """

    @property
    def token_files(self) -> tuple[Path, ...]:
        """The files that hold tokens."""
        files = (self.tokens, self.token_file, self.admin_token_file)
        return tuple(file for file in files if file is not None)

    @property
    def tls(self) -> TLSFiles | None:
        """The certificate's files, if there are any."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TLSFiles(
            certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca
        )
