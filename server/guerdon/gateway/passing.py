"""Requests that are not ranked, such as those with tools: passed on as they are, and said so."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from guerdon.gateway.metrics import GatewayMetrics
from guerdon.gateway.types import OURS
from guerdon.serving.calls import Call
from guerdon.serving.errors import InvalidRequest


class API(Protocol):
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


class Passing:
    """Passes requests on.

    Args:
        api: where to; None where there is nothing.
        max_seconds: longest time of a call.
    """

    def __init__(self, api: API | None, metrics: GatewayMetrics, *, max_seconds: float) -> None:
        self._api = api
        self._metrics = metrics
        self._max_seconds = max_seconds

    async def whole(
        self, call: Call, path: str, value: Mapping[str, Any], why: str
    ) -> dict[str, Any]:
        """The answer, with why it is not ranked."""
        reply = await self._to(why).post(path, _verbatim(value), self._deadline(call))
        self._metrics.answers.labels("none", "passed").inc()
        return {**reply, "guerdon": report(why)}

    async def events(
        self, call: Call, path: str, value: Mapping[str, Any], why: str
    ) -> AsyncGenerator[bytes, None]:
        """The answer's events as they come, without the last one."""
        events = self._to(why).stream(path, _verbatim(value), self._deadline(call))
        async with aclosing(events):
            async for piece in events:
                yield piece
        self._metrics.answers.labels("none", "passed").inc()

    def _to(self, why: str) -> API:
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


def report(why: str) -> dict[str, Any]:
    """What is told of an answer that was passed on."""
    return {"strategy": "none", "best_of": 1, "ranked": False, "reason": f"the request {why}"}


def _verbatim(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key not in OURS}
