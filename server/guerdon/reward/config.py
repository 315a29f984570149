"""The settings of `guerdon serve reward`: one TOML file, flags on top.

port = 50051                      # the keys of ServeConfig
[models]
helpful = "/models/helpful"       # name = folder, hub name, or embedded name
[aliases]
default = "helpful"
[engine]                          # the keys of EngineSettings
dtype = "bfloat16"
[batching]                        # the keys of BatchLimits
[queue]                           # the keys of QueueLimits
[limits]                          # the keys of Limits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.scheduling.admission import QueueLimits
from guerdon.reward.scheduling.scheduler import BatchLimits
from guerdon.reward.wire.convert import Limits
from guerdon.serving.credentials import TLSFiles, is_loopback
from guerdon.serving.settings import SettingsError, build, read_toml

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Everything that the server needs to know."""

    models: Mapping[str, str] = field(default_factory=dict)
    """Name to folder, hub name or embedded name. May be empty when admin is served."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias to model name."""
    host: str = "127.0.0.1"
    """Where gRPC and HTTP listen. Only this machine can reach the default."""
    port: int = 50051
    """gRPC; 0 picks a free one."""
    http_port: int = 8080
    """HTTP; 0 picks a free one, -1 serves none."""
    admin_host: str = "127.0.0.1"
    """Where ModelAdminService listens when it has a port of its own."""
    admin_port: int = -1
    """Port of its own for ModelAdminService; 0 picks a free one, -1 gives it none."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Clients must show a certificate that it signed."""
    token_file: Path | None = None
    """Holds the bearer token for scoring; else $GUERDON_TOKEN."""
    admin_token_file: Path | None = None
    """Holds the bearer token for administration; else $GUERDON_ADMIN_TOKEN."""
    max_message_bytes: int = 16 * MIB
    """Largest gRPC message taken."""
    max_body_bytes: int = 4 * MIB
    """Largest HTTP body taken."""
    stream_items: int = 256
    """Items in flight on one ScoreStream."""
    encode_threads: int = 2
    """Threads that render and tokenise."""
    drain_grace: float = 30.0
    """Seconds that accepted work gets after SIGTERM."""
    ready_file: Path | None = None
    """Gets the real ports as JSON when the server is ready."""
    log_level: str = "info"
    engine: EngineSettings = field(default_factory=EngineSettings)
    batching: BatchLimits = field(default_factory=BatchLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        for name, least in (("port", 0), ("http_port", -1), ("admin_port", -1)):
            if not least <= getattr(self, name) <= 65535:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, it must be between {least} and 65535"
                )
        for name in ("max_message_bytes", "max_body_bytes", "stream_items", "encode_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if self.drain_grace < 0:
            raise ValueError(f"drain_grace is {self.drain_grace}, it must not be negative")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key come together or not at all")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(
                f"log_level is {self.log_level!r}, it must be debug, info, warning or error"
            )

    @property
    def tls(self) -> TLSFiles | None:
        """The certificate's files, if there are any."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TLSFiles(
            certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca
        )

    def check_exposure(self, *, admin_token: bool) -> None:
        """Refuse to let other machines administer models without a credential.

        Raises:
            SettingsError: the admin port is open to other machines and there is no token.
        """
        if self.admin_port >= 0 and not is_loopback(self.admin_host) and not admin_token:
            raise SettingsError(
                f"admin_host {self.admin_host} can be reached from other machines: set "
                "GUERDON_ADMIN_TOKEN or admin_token_file, or listen on 127.0.0.1"
            )


def load_config(file: Path | None, flags: Mapping[str, Any]) -> ServeConfig:
    """The settings of a file, with flags on top.

    Args:
        flags: by the setting's name, `engine.dtype` for one in a table; None means not given.
            `models` and `aliases` replace entries of the same name only.

    Raises:
        SettingsError: a key is unknown or a value cannot be.
    """
    values = read_toml(file) if file is not None else {}
    for name, value in flags.items():
        if value is None:
            continue
        table, _, key = name.rpartition(".")
        target = values.setdefault(table, {}) if table else values
        if not isinstance(target, dict):
            raise SettingsError(f"{table} must be a table")
        if key in ("models", "aliases"):
            target[key] = {**target.get(key, {}), **value}
        else:
            target[key] = value
    return build(ServeConfig, values)
