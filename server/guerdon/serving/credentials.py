"""TLS, bearer tokens, and a warning where neither guards an open port.

Tokens come from the environment or from files, never from the command line (where
every user of the machine can read them), and are never logged.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from guerdon.addresses import is_loopback
from guerdon.settings import SettingsError

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

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of all files that there are."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))

    def load(self) -> LoadedTLS:
        """What the files hold now.

        Raises:
            SettingsError: a file cannot be read, is no PEM, or the key is another certificate's.
        """
        before = self._read()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # No session is resumed that a client began under another authority.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            raise SettingsError(f"TLS: {self.certificate} cannot be served: {error}") from error
        if self._read() != before:
            raise SettingsError(f"TLS: {self.certificate} changed while it was read")
        certificate, key, *authority = before
        return LoadedTLS(
            context,
            grpc.ssl_server_certificate_configuration(
                [(key, certificate)], root_certificates=authority[0] if authority else None
            ),
        )

    def _read(self) -> list[bytes]:
        try:
            return [file.read_bytes() for file in self.files]
        except OSError as error:
            raise SettingsError(
                f"TLS: {error.filename} cannot be read: {error.strerror}"
            ) from error


@dataclass(frozen=True)
class LoadedTLS:
    """Certificates that were read, in the form that each protocol takes."""

    context: ssl.SSLContext
    """The form that HTTP takes."""
    grpc: Any
    """A `grpc.ServerCertificateConfiguration`."""


def _no_password() -> str:
    raise ValueError("the key is encrypted")


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


def warn_if_open(host: str, *, tls: bool, token: bool) -> None:
    """Log what is missing when a port can be reached from other machines."""
    if is_loopback(host) or (tls and token):
        return
    missing = " and ".join(
        name for name, given in (("TLS", tls), ("a bearer token", token)) if not given
    )
    logger.warning("%s can be reached from other machines without %s", host, missing)
