"""The settings of `guerdon serve gateway`: one TOML file, flags on top.

http_port = 8082                  # the keys of GatewayConfig
sampler = "localhost:50052"       # or endpoint = "http://localhost:8000/v1"
reward = ["localhost:50051/helpful"]
[presets.careful]                 # the model policy:careful; the keys of PartialPlan
best_of = 16
strategy = "soft"
[spending]                        # the keys of SpendingSettings
caller_tokens = 100000
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from guerdon.addresses import is_loopback
from guerdon.gateway.plans import PartialPlan, PlanLimits, new_plan
from guerdon.serving.config import ServerSettings
from guerdon.serving.errors import InvalidRequest
from guerdon.settings import SettingsError, load, not_negative, positive

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
BEST_OF = "best-of-"
"""How the names begin by which a model's name asks for so many candidates."""


@dataclass(frozen=True, kw_only=True)
class SpendingSettings:
    """How many tokens a caller may have drawn."""

    caller_tokens: int = 0
    """Tokens that each caller may have drawn in caller_seconds; 0 for no limit."""
    caller_seconds: float = 60.0
    """Seconds in which they come back, evenly."""
    callers: Mapping[str, int] = field(default_factory=dict)
    """Other numbers of tokens, by the caller's name in the tokens file."""

    def __post_init__(self) -> None:
        not_negative(self, "caller_tokens")
        positive(self, "caller_seconds")
        for name, tokens in self.callers.items():
            if tokens < 0:
                raise ValueError(f"callers.{name} is {tokens}, it must not be negative")


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServerSettings):
    """Everything that the gateway needs to know."""

    port: int = 50054
    """gRPC port, for health alone; 0 picks a free one."""
    http_port: int = 8082
    """HTTP port of the OpenAI API; 0 picks a free one."""
    sampler: str = ""
    """HOST:PORT of the Guerdon sampler that draws candidates."""
    endpoint: str = ""
    """Instead of a sampler, the URL of an OpenAI API: http://HOST:PORT/v1."""
    endpoint_model: str = ""
    """The model's name there."""
    pass_to: str = ""
    """URL of an OpenAI API for what isn't ranked, such as requests with tools: the sampler's own.
    (default: the endpoint)"""
    reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL of a reward model; the first is the default. Repeat it."""
    reward_page: str = ""
    """URL of a reward server's playground, as browsers reach it; the gateway's page links to it."""
    upstream_tls: bool = False
    """Encrypt what goes to the sampler and the reward servers."""
    upstream_ca: Path | None = None
    """PEM file: authorities that sign their certificates. (default: the system's)"""
    sampler_token_file: Path | None = None
    """Holds the sampler's token; else $GUERDON_SAMPLER_TOKEN."""
    reward_token_file: Path | None = None
    """Holds the reward servers' token; else $GUERDON_REWARD_TOKEN."""
    endpoint_key_file: Path | None = None
    """Holds the key of endpoint or pass_to; else $GUERDON_ENDPOINT_KEY."""
    endpoint_key_over_http: bool = False
    """Send that key to other machines over http too, unencrypted: in a network of your own."""
    name: str = "policy"
    """What the gateway calls its model."""
    best_of: int = 8
    """Candidates of a call that doesn't say how many."""
    max_best_of: int = 64
    """Most candidates of a call."""
    offered: tuple[int, ...] = (4, 8, 16)
    """Numbers of candidates that /v1/models lists, as NAME:best-of-N. Any other may be asked."""
    max_tokens: int = 1024
    """Tokens of a candidate where the call doesn't say how many."""
    unranked: Literal["refuse", "first"] = "refuse"
    """When no ranking is to be had: refuse the call (503), or answer with the first candidate,
    marked as not ranked."""
    max_seconds: float = 300.0
    """Longest time of a call."""
    reward_seconds: float = 30.0
    """Longest time of a score."""
    comment_seconds: float = 5.0
    """Longest silence of a stream while candidates are drawn."""
    presets: Mapping[str, PartialPlan] = field(default_factory=dict)
    spending: SpendingSettings = field(default_factory=SpendingSettings)

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        super().__post_init__()
        self.check_port("http_port", least=0)
        positive(
            self,
            "best_of",
            "max_best_of",
            "max_tokens",
            "max_seconds",
            "reward_seconds",
            "comment_seconds",
        )
        for url in ("endpoint", "pass_to", "reward_page"):
            _check_url(url, getattr(self, url))
        _ = self.models
        if self.best_of > self.max_best_of:
            raise ValueError(f"best_of is {self.best_of}, more than max_best_of")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}, it must be letters, digits, '.', '_', '-'")
        for name in self.presets:
            if not _NAME.fullmatch(name) or name.startswith(BEST_OF):
                raise ValueError(f"presets: {name!r} can't name a preset")

    @property
    def models(self) -> dict[str, str]:
        """Addresses of the reward servers, by the model's name.

        Raises:
            SettingsError: a reward is no HOST:PORT/MODEL, or two have one name.
        """
        found: dict[str, str] = {}
        for spec in self.reward:
            address, slash, model = spec.partition("/")
            if not slash or not address or not model:
                raise SettingsError(f"reward: {spec!r} is not HOST:PORT/MODEL")
            if "@" in model:
                raise SettingsError(f"reward: {spec!r} pins a revision, which the gateway can't")
            if model in found:
                raise SettingsError(f"reward: two models are called {model!r}")
            found[model] = address
        return found

    def check_key(self) -> None:
        """Refuse URLs that would show the endpoint's key to the network.

        Raises:
            SettingsError: one is http, and of another machine.
        """
        for name in ("endpoint", "pass_to"):
            parts = urlsplit(getattr(self, name))
            plain = parts.scheme == "http" and not is_loopback(parts.hostname or "")
            if plain and not self.endpoint_key_over_http:
                raise SettingsError(
                    f"{name} is http, which would show the endpoint's key to the network: use "
                    "https, or --endpoint-key-over-http in a network of your own"
                )

    @property
    def limits(self) -> PlanLimits:
        """What a plan may hold."""
        return PlanLimits(
            best_of=self.best_of,
            max_best_of=self.max_best_of,
            models=tuple(self.models),
            resumes=bool(self.sampler),
        )


def load_config(file: Path | None, flags: Mapping[str, Any]) -> GatewayConfig:
    """The settings of a file, with flags on top.

    Raises:
        SettingsError: a key is unknown, a value cannot be, or a service is not named.
    """
    config = load(GatewayConfig, file, flags)
    if bool(config.sampler) == bool(config.endpoint):
        raise SettingsError("give either --sampler or --endpoint: what draws the candidates")
    if config.endpoint and not config.endpoint_model:
        raise SettingsError("--endpoint needs --endpoint-model, the model's name there")
    if not config.reward:
        raise SettingsError("no reward model: give --reward with HOST:PORT/MODEL")
    for name, preset in config.presets.items():
        try:
            new_plan(preset, 1, config.limits)
        except InvalidRequest as error:
            raise SettingsError(f"presets.{name}: {error}") from error
    return config


def _check_url(key: str, url: str) -> None:
    """Refuse what is no URL, and what would put a password into logs.

    Raises:
        ValueError: it is such a one.
    """
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{key} must be a URL like http://HOST:PORT/v1, or https")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{key} must have no password, query or fragment")
