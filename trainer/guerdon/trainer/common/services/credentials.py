"""What lets a run in at its services: bearer tokens and TLS, as for the other commands.

Tokens come from the environment or from files. The settings, which go to config.toml and to
trackers, know the files' names at most.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.client import TLS
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.settings import DrawSettings

TOKEN_VARIABLE = "GUERDON_TOKEN"  # noqa: S105 - the variable's name, not a token
ADMIN_TOKEN_VARIABLE = "GUERDON_ADMIN_TOKEN"  # noqa: S105
VERIFIER_TOKEN_VARIABLE = "GUERDON_VERIFIER_TOKEN"  # noqa: S105


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The tokens and the encryption of a run; by default none."""

    token: str | None = field(default=None, repr=False)
    """The token for the sampler and every reward server."""
    update_token: str | None = field(default=None, repr=False)
    """The token for the sampler's weights."""
    verifier_token: str | None = field(default=None, repr=False)
    """The token for verifiers that are asked over HTTP: the services' own is not for them."""
    tls: TLS | None = None

    @classmethod
    def of(cls, settings: DrawSettings) -> Credentials:
        """The credentials that the settings and the environment name.

        Raises:
            SettingsError: a file can't be read, or holds no token.
        """
        token = _read_token(TOKEN_VARIABLE, settings.token_file, "token_file")
        admin = None
        if hasattr(settings, "admin_token_file"):  # who only draws updates nothing
            file = settings.admin_token_file
            admin = _read_token(ADMIN_TOKEN_VARIABLE, file, "admin_token_file")
        file = settings.verifier_token_file
        verifier = _read_token(VERIFIER_TOKEN_VARIABLE, file, "verifier_token_file")
        tls = _new_tls(settings.tls, settings.tls_ca)
        return cls(token=token, update_token=admin or token, verifier_token=verifier, tls=tls)


def reach(settings: DrawSettings) -> dict[str, Any]:
    """How services are reached: arguments of `GroupSampler`, `RewardSource`, `parse_verifier`.

    Raises:
        SettingsError: as `Credentials.of`.
    """
    return {
        "patience": settings.patience,
        "request_timeout": settings.request_timeout,
        "credentials": Credentials.of(settings),
    }


def _new_tls(tls: bool, ca_file: str) -> TLS | None:
    """The encryption that settings ask for; None is none.

    Raises:
        SettingsError: there is no such file of authorities.
    """
    ca = Path(ca_file) if ca_file else None
    if ca is not None and not ca.is_file():
        raise SettingsError(f"tls_ca: there is no file {ca}")
    return TLS(ca=ca) if tls or ca is not None else None


def _read_token(variable: str, file: str, setting: str) -> str | None:
    """A token from a file, else from an environment variable; None when there is neither.

    Raises:
        SettingsError: the file can't be read, or what is there is no token. It is not shown.
    """
    source = f"{setting}: the file {file}" if file else variable
    if file:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{source} can't be read: {error}") from error
        if not token:
            raise SettingsError(f"{source} is empty")
    else:
        token = os.environ.get(variable, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise SettingsError(f"{source} holds what can't be a token: more than a line of ASCII")
    return token or None
