"""An OpenAI-compatible API over HTTP: requests posted, errors told apart, streams passed on."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from guerdon.addresses import is_loopback
from guerdon.gateway.upstream.errors import time_left
from guerdon.serving.errors import (
    ComputeFailed,
    DeadlinePassed,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServiceError,
    Unavailable,
)
from guerdon.serving.waiting import MAX_RETRY_SECONDS, UNKNOWN_RETRY_SECONDS

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""Most bytes of a reply, and of an event of a stream."""
_SHOWN = 300
"""Characters of an endpoint's own words that are passed on."""


class OpenAIAPI:
    """Asks one API.

    Args:
        url: without the last part of paths: http://HOST:PORT/v1.
        key: sent as `authorization: Bearer …`; empty for none.
        model: the model's name there; empty to leave it out.
        ca: PEM file of authorities, beside the system's.
    """

    def __init__(self, url: str, *, key: str, model: str, ca: Path | None) -> None:
        context = ssl.create_default_context()
        if ca is not None:
            context.load_verify_locations(cafile=str(ca))
        self._url, self._key, self._model = url.rstrip("/"), key, model
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # every call has a deadline
            verify=context,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
            limits=httpx2.Limits(max_connections=None),
        )

    async def post(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """The JSON of a whole answer.

        Raises:
            ServiceError: there is none; the text says why.
        """
        async with self._asked(path, body, deadline) as response:
            data = await _whole(response)
        try:
            reply = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ComputeFailed("the endpoint answers with no JSON") from error
        if not isinstance(reply, dict):
            raise ComputeFailed("the endpoint answers with no JSON object")
        return reply

    async def stream(
        self, path: str, body: Mapping[str, Any], deadline: float
    ) -> AsyncGenerator[bytes, None]:
        """The events of an answer as they come, each with its blank line, without [DONE].

        Raises:
            ServiceError: as `post`.
        """
        async with self._asked(path, body, deadline) as response:
            pending = b""
            async for data in response.aiter_bytes():
                *events, pending = (pending + data.replace(b"\r\n", b"\n")).split(b"\n\n")
                for each in events:
                    if each.strip() != b"data: [DONE]":
                        yield each + b"\n\n"
                if len(pending) > MAX_REPLY_BYTES:
                    raise ComputeFailed("the endpoint sends an event that has no end")

    @asynccontextmanager
    async def _asked(
        self, path: str, body: Mapping[str, Any], deadline: float
    ) -> AsyncGenerator[httpx2.Response, None]:
        named = {**body, "model": self._model} if self._model else dict(body)
        try:
            async with (
                asyncio.timeout(time_left(deadline)),
                self._client.stream("POST", f"{self._url}{path}", json=named) as response,
            ):
                if not response.is_success:
                    raise self._error(response, await _whole(response))
                yield response
        except TimeoutError as error:
            raise DeadlinePassed("the endpoint did not answer before the deadline") from error
        except httpx2.HTTPError as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"the endpoint is away: {why}") from error

    def _error(self, response: httpx2.Response, data: bytes) -> ServiceError:
        status = response.status_code
        said = _message(data)
        if self._key:
            said = said.replace(self._key, "…")
        text = f"the endpoint answers HTTP {status}" + (f": {said}" if said else "")
        if status == 429:
            return Overloaded(text, retry_after=_retry_after(response))
        if status == 404:
            return NotFound(text)
        if status in (400, 413, 422):
            return InvalidRequest("request", text)
        if status == 504:
            return DeadlinePassed(text)
        return Unavailable(text)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _whole(response: httpx2.Response) -> bytes:
    data = bytearray()
    async for part in response.aiter_bytes():
        data += part
        if len(data) > MAX_REPLY_BYTES:
            raise ComputeFailed(f"the endpoint's answer is longer than {MAX_REPLY_BYTES} bytes")
    return bytes(data)


def _message(data: bytes) -> str:
    """What the body of an error says."""
    try:
        error = json.loads(data)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, LookupError, TypeError):
        said = data.decode("utf-8", "replace")
    return " ".join(str(said).split())[:_SHOWN]


def _retry_after(response: httpx2.Response) -> float:
    """Seconds, where the header has them; it may also be a date."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return UNKNOWN_RETRY_SECONDS
    return min(max(0.0, seconds), MAX_RETRY_SECONDS)
