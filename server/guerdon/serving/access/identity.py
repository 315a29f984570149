"""Who makes a call: what services, scheduler and metrics know of a caller."""

from __future__ import annotations

import enum
from contextvars import ContextVar
from dataclasses import dataclass

ANONYMOUS = "anonymous"
"""What metrics call everybody who shows no token."""


class Role(enum.Enum):
    """What a caller may do."""

    SCORE = "score"
    """Score and rank."""
    SAMPLE = "sample"
    """Sample completions."""
    ADMIN = "admin"
    """Load, unload and promote models."""
    WEIGHTS = "weights"
    """Replace the weights of a sampler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call, and how much it may ask for."""

    name: str = ANONYMOUS
    """What metrics and logs call it. There are few: strangers have one name together."""
    key: str = ""
    """What fair shares and limits go by: the name of a caller in the tokens file, else the
    address that the call came from."""
    classes: frozenset[str] = frozenset({"online", "batch"})
    """Classes that it may ask for."""
    share: float = 1.0
    """The caller's weight among those of a class."""
    max_calls: int | None = None
    """Most calls, and items of streams, that are served at a time."""
    max_tokens: int | None = None
    """Most tokens accepted and not yet computed."""


EVERYBODY = Caller()
"""The caller where callers are not told apart."""
_CURRENT: ContextVar[Caller] = ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """Note who makes the call that the present task serves."""
    _CURRENT.set(caller)


def current_caller() -> Caller:
    """Who makes the call that the present task serves; anonymous where nobody noted it."""
    return _CURRENT.get(EVERYBODY)
