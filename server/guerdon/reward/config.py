"""The settings of `guerdon serve reward`: one TOML file, flags on top.

port = 50051                      # the keys of RewardConfig
[models]
helpful = "/models/helpful"       # name = folder, hub name, embedded name, or a judge's settings
[aliases]
default = "helpful"
[engine]                          # the keys of EngineSettings
dtype = "bfloat16"
[batching]                        # the keys of BatchLimits
[queue]                           # the keys of QueueLimits
[limits]                          # the keys of RequestLimits
[formats]                         # the keys of FormatSettings
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.addresses import is_loopback
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.request_limits import FormatSettings, RequestLimits
from guerdon.reward.scheduling.limits import BatchLimits, QueueLimits
from guerdon.serving.config import ServerSettings
from guerdon.settings import SettingsError, load, positive


@dataclass(frozen=True, kw_only=True)
class RewardConfig(ServerSettings):
    """Everything that the server needs to know."""

    port: int = 50051
    """gRPC port; 0 picks a free one."""
    http_port: int = 8080
    """HTTP port; 0 picks a free one, -1 serves none."""
    token_file: Path | None = None
    """Holds the bearer token for scoring; else $GUERDON_TOKEN."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Name to folder, hub name, embedded name or a judge's settings file. May be empty when
    administration is served."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias to model name."""
    admin_host: str = "127.0.0.1"
    """Address of the admin port."""
    admin_port: int = -1
    """Serve ModelAdminService on this port of --admin-host; 0 picks a free one. Without it, it is
    served on --port if there is an admin token, else not at all."""
    load_from: tuple[str, ...] = ()
    """Folder or model's name (* stands for anything) that administration may load. Repeat it.
    (default: what --model names, and what lies beside it)"""
    stream_items: int = 256
    """Items in flight on one ScoreStream."""
    encode_threads: int = 2
    """Threads that tokenise."""
    hang_seconds: float = 60.0
    """A batch that takes longer than this, and 20 times as long as its size should take, costs the
    engine's process, which is started anew. Before a model's first batch has ended, ten times
    this."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    batching: BatchLimits = field(default_factory=BatchLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)
    limits: RequestLimits = field(default_factory=RequestLimits)
    formats: FormatSettings = field(default_factory=FormatSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_port("admin_port", least=-1)
        positive(self, "stream_items", "encode_threads", "hang_seconds")

    def check_exposure(self, *, admin_token: bool) -> None:
        """Refuse to let other machines administer models without a credential.

        Raises:
            SettingsError: the admin port is open to other machines and there is no token.
        """
        if self.admin_port >= 0 and not is_loopback(self.admin_host) and not admin_token:
            raise SettingsError(
                f"admin_host {self.admin_host} can be reached from other machines: set "
                "GUERDON_ADMIN_TOKEN, admin_token_file or tokens, or listen on 127.0.0.1"
            )


def load_config(file: Path | None, flags: Mapping[str, Any]) -> RewardConfig:
    """The settings of a file, with flags on top; `models` and `aliases` are merged.

    Raises:
        SettingsError: a key is unknown or a value cannot be.
    """
    return load(RewardConfig, file, flags, merged=("models", "aliases"))
