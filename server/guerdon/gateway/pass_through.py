"""Requests that are not ranked, such as those with tools: passed on as they are, and said so."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from guerdon.gateway.metrics import GatewayMetrics
from guerdon.gateway.spending import Spending
from guerdon.gateway.types import OURS
from guerdon.serving.calls import Call
from guerdon.serving.errors import DeadlinePassed, InvalidRequest, ServiceError


class CompletionsAPI(Protocol):
    """An OpenAI-compatible API."""

    async def post(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """The JSON of a whole answer.

        Raises:
            ServiceError: there is none.
        """

    def stream(
        self, path: str, body: Mapping[str, Any], deadline: float
    ) -> AsyncGenerator[bytes, None]:
        """The events of an answer as they come, without the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedRequest:
    """A request that is passed on."""

    path: str
    value: Mapping[str, Any]
    """The request's JSON, as it came."""
    why: str
    """Why it is not ranked."""
    most: int | None
    """The most tokens that it asks for, None where it doesn't say."""


@dataclass(slots=True)
class _Bill:
    """What a request costs its caller."""

    tokens: int
    """All that it may draw, until the endpoint tells how many it drew."""

    def read(self, reply: Mapping[str, Any]) -> None:
        """Take the tokens from a reply's usage, where it has one."""
        usage = reply.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if type(tokens) is int and tokens >= 0:
            self.tokens = tokens


class PassThrough:
    """Passes requests on, at the cost of the tokens that their callers have.

    Args:
        api: where to; None where there is nothing.
        max_tokens: of a request that doesn't say how many.
        max_seconds: longest time of a call.
    """

    def __init__(
        self,
        api: CompletionsAPI | None,
        spending: Spending,
        metrics: GatewayMetrics,
        *,
        max_tokens: int,
        max_seconds: float,
    ) -> None:
        self._api = api
        self._spending = spending
        self._max_tokens = max_tokens
        self._metrics = metrics
        self._max_seconds = max_seconds

    async def whole_answer(self, call: Call, request: PassedRequest) -> dict[str, Any]:
        """The answer, with why it is not ranked.

        Raises:
            ServiceError: there is nowhere to pass it on to, no answer, or no tokens are left.
        """
        api = self._to(request.why)
        with self._billed(call, request) as bill:
            reply = await api.post(request.path, self._sent(request), self._deadline(call))
            bill.read(reply)
        self._metrics.answers.labels("none", "passed").inc()
        told = {"strategy": "none", "best_of": 1, "ranked": False}
        return {**reply, "guerdon": {**told, "reason": f"the request {request.why}"}}

    async def events(self, call: Call, request: PassedRequest) -> AsyncGenerator[bytes, None]:
        """The answer's events as they come, without the last one; raises as `whole_answer`."""
        api = self._to(request.why)
        with self._billed(call, request) as bill:
            events = api.stream(request.path, self._sent(request), self._deadline(call))
            async with aclosing(events):
                async for piece in events:
                    bill.read(_usage_event(piece))
                    yield piece
        self._metrics.answers.labels("none", "passed").inc()

    @contextmanager
    def _billed(self, call: Call, request: PassedRequest) -> Iterator[_Bill]:
        """Take what a request may cost, and give back what it doesn't."""
        reserved = request.most or self._max_tokens
        with self._metrics.spending_refusals(call.caller):
            self._spending.take(call.caller, reserved, time.monotonic())
        bill = _Bill(reserved)
        try:
            yield bill
        except DeadlinePassed:
            raise
        except ServiceError:
            bill.tokens = 0  # no fault of the caller's
            raise
        finally:
            unspent = reserved - bill.tokens
            self._spending.give_back(call.caller, unspent, time.monotonic())

    def _sent(self, request: PassedRequest) -> dict[str, Any]:
        """The request as it came, without the gateway's own keys, and with its most tokens."""
        body = {key: each for key, each in request.value.items() if key not in OURS}
        return body if request.most else {**body, "max_tokens": self._max_tokens}

    def _to(self, why: str) -> CompletionsAPI:
        if self._api is None:
            raise InvalidRequest(
                "tools" if why == "has tools" else "messages",
                f"the request {why}, so it is not ranked, and this gateway was told of no OpenAI "
                "API to pass it on to (--pass-to)",
            )
        return self._api

    def _deadline(self, call: Call) -> float:
        latest = time.monotonic() + self._max_seconds
        return latest if call.deadline is None else min(call.deadline, latest)


def _usage_event(piece: bytes) -> dict[str, Any]:
    """The JSON of a stream's event that may tell the usage; empty for others."""
    if b'"usage"' not in piece:
        return {}
    try:
        value = json.loads(piece.strip().removeprefix(b"data:"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
