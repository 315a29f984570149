"""Who did what: refused credentials, administration, and on request every call.

One line of JSON an event. Tokens never are in it; what callers send is escaped and cut.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar

from guerdon.serving.access.identity import Caller
from guerdon.serving.logs import RateLimit

audit_log = logging.getLogger("guerdon.audit")
access_log = logging.getLogger("guerdon.access")

_MAX_TEXT = 200
_REFUSED = "refused %s"
_subject: ContextVar[dict[str, str] | None] = ContextVar("subject", default=None)
_request_id: ContextVar[str] = ContextVar("request_id", default="")

# A stranger decides how often this is written.
_refusals = logging.getLogger("guerdon.audit.refused")
_refusals.addFilter(RateLimit(most=10, seconds=10.0))


def refused(method: str, peer: str, code: str) -> None:
    """A call whose token is missing, wrong, or has not the role."""
    _refusals.warning(_REFUSED, _line(method=method, peer=peer, code=code))


def begin() -> None:
    """An administrative call begins: nothing is known yet of what it is about."""
    _subject.set({})


def note(**subject: str) -> None:
    """Say what the administrative call that is being served is about."""
    known = _subject.get()
    if known is not None:
        known.update(subject)


def administered(method: str, caller: Caller, peer: str, code: str) -> None:
    """An administrative call has ended."""
    subject = _subject.get() or {}
    audit_log.info(
        "admin %s", _line(method=method, caller=caller.name, peer=peer, code=code, **subject)
    )


def note_request_id(request_id: str) -> None:
    """Note the id that the caller gave to the request that is being served."""
    _request_id.set(request_id)


def called(method: str, caller: Caller, code: str, seconds: float) -> None:
    """Any call has ended."""
    if access_log.isEnabledFor(logging.INFO):
        request_id = _request_id.get()
        access_log.info(
            "call %s",
            _line(
                method=method,
                caller=caller.name,
                key=caller.key,
                code=code,
                seconds=f"{seconds:.4f}",
                **({"request_id": request_id} if request_id else {}),
            ),
        )


def _line(**values: str) -> str:
    return json.dumps({key: value[:_MAX_TEXT] for key, value in values.items()})
