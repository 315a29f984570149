"""How the client behaves: small values with named defaults."""

from __future__ import annotations

import asyncio
import numbers
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from guerdon.client.errors import invalid

DEFAULT_TIMEOUT = 60.0
"""Seconds that a call may take, retries included."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Bytes of a reply's message, unless `Limits` say otherwise."""
SHORTEST, LONGEST = 1e-6, 365 * 86_400.0
"""Seconds: bounds of every time that can be set."""

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
    reject_dropped_text: bool
    """Refuse conversations of which the chat template leaves text out, rather than say so in
    `Score.dropped`."""
    reject_control_tokens: bool
    """Refuse texts that spell a control token of the model, such as `<|im_end|>`."""
    timeout: float | None
    """Seconds for the whole call, retries included; in a stream, for each item. None: no limit.
    The client's own when not given."""


def check_number(
    name: str, value: Any, lowest: float, highest: float, *, whole: bool = False, instead: str = ""
) -> None:
    """Refuse what is no number, not finite, or out of range.

    Args:
        name: of the argument.
        whole: whether it must be an integer.
        instead: what may be given instead of a number.

    Raises:
        InvalidArgument: one sentence that names the argument.
    """
    kind = numbers.Integral if whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and lowest <= value <= highest:
        return
    what = f"{'a whole' if whole else 'a'} number from {lowest:g} to {highest:g}"
    if instead:
        what += f", or {instead}"
    raise invalid(name, f"is {value!r}, it must be {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When to try again, and how long to wait before.

    Retried is what is safe and may help: UNAVAILABLE, and RESOURCE_EXHAUSTED with RetryInfo. A call
    is tried until its deadline; the numbers of tries are a second bound, for calls without one.

    Waits have full jitter: uniform between 0 and `initial * multiplier ** n`, at most `maximum`.
    Where the server says when to come back, that time is waited and the jitter comes on top,
    so that callers who were turned away together do not come back together. No wait goes past
    the call's deadline: where the server's own time does, the error is raised at once.
    """

    attempts: int = 1000
    """Tries in all when the server is unavailable. 1 never retries, overload included."""
    overload_attempts: int = 1000
    """Tries in all when the server is overloaded and says when to come back."""
    initial: float = 0.1
    """Seconds: the longest first wait."""
    multiplier: float = 2.0
    maximum: float = 5.0
    """Seconds: the longest wait that is not the server's own."""
    hedge_after: float | None = None
    """Seconds after which a single request that is safe to repeat is sent a second time, to the
    next server of several; the first answer counts. What is late is then computed twice, so set
    it well above the usual time of a call. None: never. Streams and sampling are not hedged."""

    def __post_init__(self) -> None:
        for name in ("attempts", "overload_attempts"):
            check_number(name, getattr(self, name), 1, 1e9, whole=True)
        check_number("initial", self.initial, SHORTEST, LONGEST)
        check_number("multiplier", self.multiplier, 1, 1000)
        check_number("maximum", self.maximum, self.initial, LONGEST)
        if self.hedge_after is not None:
            check_number("hedge_after", self.hedge_after, SHORTEST, LONGEST, instead="None")


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
    the stream of all."""
    max_reply_bytes: int = MAX_REPLY_BYTES
    """Bytes of a reply's message: a larger one is refused as it comes in (`Overloaded`)."""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            check_number(field_.name, getattr(self, field_.name), 1, 2**31 - 1, whole=True)


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


def _uniform(low: float, high: float) -> float:
    """A function of the module: pickled by name, it takes no random state along."""
    return random.uniform(low, high)  # noqa: S311


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time and chance, which tests replace."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = _uniform


class ConnectionOptions(TypedDict, total=False):
    """Keyword arguments of every client beside its target; see `AsyncClient`."""

    token: str | None
    tls: TLS | None
    retry: Retry
    timeout: float | None
    clock: Clock
