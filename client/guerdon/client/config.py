"""How the client behaves: small values with named defaults."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

DEFAULT_TIMEOUT = 60.0
"""Seconds that a call may take, retries included."""

Priority = Literal["online", "batch"]
Truncation = Literal["reject", "prompt_left"]
Activation = Literal["none", "sigmoid"]


class ScoringOptions(TypedDict, total=False):
    """Keyword arguments of every scoring call. All are optional."""

    priority: Priority
    """`online` (the default) goes first; `batch` is bulk work, with a guaranteed share."""
    truncation: Truncation
    """A sequence that is too long: `reject` it (the default), or cut the prompt from the left."""
    activation: Activation
    """`none` (the default) leaves scores raw; `sigmoid` squashes them."""
    normalize: bool
    """Subtract the training set's mean and divide by its standard deviation."""
    timeout: float | None
    """Seconds for the whole call, retries included; in a stream, for each item. None: no limit.
    The client's own when not given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When to try again, and how long to wait before.

    Retried is what is safe and may help: UNAVAILABLE, and RESOURCE_EXHAUSTED with RetryInfo.
    Waits have full jitter: uniform between 0 and `initial * multiplier ** n`, at most `maximum`.
    Where the server says when to come back, that time is waited and the jitter comes on top,
    so that callers who were turned away together do not come back together. No wait goes past
    the call's deadline: then the last error is raised at once.
    """

    attempts: int = 8
    """Tries in all when the server is unavailable. 1 never retries, overload included."""
    overload_attempts: int = 64
    """Tries in all when the server is overloaded and says when to come back."""
    initial: float = 0.1
    """Seconds: the longest first wait."""
    multiplier: float = 2.0
    maximum: float = 10.0
    """Seconds: the longest wait that is not the server's own."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.overload_attempts < 1:
            raise ValueError("attempts and overload_attempts count the first try: at least 1")
        if self.initial <= 0 or self.maximum < self.initial or self.multiplier < 1:
            raise ValueError("initial must be positive, maximum at least that, multiplier >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a large call is cut into requests."""

    max_bytes: int = 1024 * 1024
    """Bytes of one request; a single prompt with one response may be larger."""
    max_responses: int = 256
    """Responses in one request."""
    concurrency: int = 4
    """Requests of one call that are under way at a time."""
    max_message_bytes: int = 16 * 1024 * 1024
    """Bytes of a stream's item: a larger one is refused here, because the server would end
    the stream of all. Replies may be any size."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_responses", "concurrency", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Encrypt the connection. PEM files; the system's authorities when `ca` is not given."""

    ca: str | Path | None = None
    """Authorities that sign the server's certificate."""
    certificate: str | Path | None = None
    """The client's own certificate, where the server asks for one."""
    key: str | Path | None = field(default=None, repr=False)
    """The key of `certificate`."""
    server_name: str | None = None
    """The name in the server's certificate, where it is not that of the target. Needed for a
    list of endpoints: they share one name."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together or not at all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time and chance, which tests replace."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform
