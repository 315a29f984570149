"""The settings of `guerdon serve sampler`: one TOML file, flags on top.

port = 50052                      # the keys of SamplerConfig
model = "/models/policy"          # folder, hub name, or embedded name
shared_dirs = ["/shared/weights"]
[engine]                          # the keys of EngineSettings
dtype = "bfloat16"
[limits]                          # the keys of RequestLimits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guerdon.addresses import is_loopback
from guerdon.sampler.engine.settings import EngineSettings
from guerdon.sampler.request_limits import RequestLimits
from guerdon.serving.config import MIB, ServerSettings
from guerdon.settings import SettingsError, build, given, positive


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(ServerSettings):
    """Everything that the sampler needs to know."""

    port: int = 50052
    """gRPC port; 0 picks a free one."""
    http_port: int = 8081
    """HTTP port; 0 picks a free one, -1 serves none."""
    token_file: Path | None = None
    """Holds the bearer token for sampling; else $GUERDON_TOKEN."""
    admin_token_file: Path | None = None
    """Holds the admin token for updates; else $GUERDON_ADMIN_TOKEN."""
    max_message_bytes: int = 32 * MIB
    """Largest gRPC message taken: bounds the chunks of tensors."""
    model: str = ""
    """The policy to begin with: a folder or a hub name."""
    served_name: str = ""
    """What OpenAI's API calls the policy; the last part of --model if empty."""
    max_in_flight: int = 512
    """Most completions running and waiting; beyond, calls are shed."""
    updates: bool = True
    """Let the weights be replaced."""
    shared_dirs: tuple[Path, ...] = ()
    """Take weights from files below this folder. Repeat it."""
    nccl: bool = False
    """Take weights by NCCL, between two CUDA GPUs. Not tried on any yet."""
    update_idle_seconds: float = 60.0
    """Give up an update whose trainer is silent for so long."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "max_in_flight", "update_idle_seconds")
        for folder in self.shared_dirs:
            if not folder.is_dir():
                raise ValueError(f"shared_dirs: there is no folder {folder}")

    def check_exposure(self, *, admin_token: bool) -> None:
        """Refuse to let other machines replace the weights without a credential.

        Raises:
            SettingsError: the port is open to other machines and there is no admin token.
        """
        if self.updates and not is_loopback(self.host) and not admin_token:
            raise SettingsError(
                f"host {self.host} can be reached from other machines, which could replace the "
                "weights: set GUERDON_ADMIN_TOKEN, admin_token_file or tokens, or give "
                "--no-updates, or listen on 127.0.0.1"
            )


def load_config(file: Path | None, flags: Mapping[str, Any]) -> SamplerConfig:
    """The settings of a file, with flags on top.

    Raises:
        SettingsError: a key is unknown, a value cannot be, or no model is named.
    """
    values = given(file, flags)
    values.pop("encode_threads", None)  # older files may hold it: it never did anything
    config = build(SamplerConfig, values)
    if not config.model:
        raise SettingsError("no policy to serve: give --model with a folder or a name")
    return config
