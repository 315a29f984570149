"""TLS, bearer tokens, and a warning where neither guards an open port.

Tokens come from the environment or from files, never from the command line (where
every user of the machine can read them), and are never logged.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from guerdon.serving.settings import SettingsError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "GUERDON_TOKEN"  # noqa: S105 - the variable's name, not a token
ADMIN_TOKEN_VARIABLE = "GUERDON_ADMIN_TOKEN"  # noqa: S105


@dataclass(frozen=True, kw_only=True)
class TLSFiles:
    """Paths of PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """When given, clients must show a certificate that it signed."""

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and not path.is_file():
                raise SettingsError(f"there is no file {path}")

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a secure gRPC port."""
        authority = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=authority,
            require_client_auth=authority is not None,
        )


def read_token(environment: str, file: Path | None) -> str:
    """A token from a file, else from an environment variable; empty when there is none.

    Raises:
        SettingsError: the file cannot be read or is empty.
    """
    if file is None:
        return os.environ.get(environment, "").strip()
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the token file {file} cannot be read: {error}") from error
    if not token:
        raise SettingsError(f"the token file {file} is empty")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a port bound to the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def warn_if_open(host: str, *, tls: bool, token: bool) -> None:
    """Log what is missing when a port can be reached from other machines."""
    if is_loopback(host) or (tls and token):
        return
    missing = " and ".join(
        name for name, given in (("TLS", tls), ("a bearer token", token)) if not given
    )
    logger.warning("%s can be reached from other machines without %s", host, missing)
