"""An OpenAI-compatible API over HTTP: requests posted, errors told apart, streams passed on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from guerdon.gateway.upstream.errors import time_left
from guerdon.http_services import (
    ReplyTooLong,
    new_client,
    retry_after,
    shown,
    whole_reply,
)
from guerdon.serving.errors import (
    ComputeFailed,
    DeadlinePassed,
    InvalidRequest,
    Overloaded,
    ServiceError,
    Unavailable,
)
from guerdon.serving.waiting import MAX_RETRY_SECONDS, UNKNOWN_RETRY_SECONDS

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 16 * 1024 * 1024
"""Most bytes of a reply, and of an event of a stream."""
_PIECE_BYTES = 256 * 1024
"""Most bytes of a request that are handed to a connection at once, and copied by it."""


class OpenAIAPI:
    """Asks one API.

    Args:
        url: without the last part of paths: http://HOST:PORT/v1.
        key: sent as `authorization: Bearer …`; empty for none.
        model: the model's name there; empty to leave it out.
        ca: PEM file of authorities, beside the system's.
    """

    def __init__(self, url: str, *, key: str, model: str, ca: Path | None) -> None:
        self._url, self._key, self._model = url.rstrip("/"), key, model
        self._client = new_client(url, key, ca=ca)

    async def post(self, path: str, body: Mapping[str, Any], deadline: float) -> dict[str, Any]:
        """The JSON of a whole answer.

        Raises:
            ServiceError: there is none; the text says why.
        """
        return await self.send(path, (await self.encoded(body),), deadline)

    async def encoded(self, body: Mapping[str, Any]) -> bytes:
        """A request's JSON, with the model's name; made in a thread, since it may be large."""
        named = {**body, "model": self._model} if self._model else dict(body)
        text = await asyncio.to_thread(json.dumps, named, allow_nan=False, separators=(",", ":"))
        return text.encode("ascii")

    async def send(self, path: str, parts: Sequence[bytes], deadline: float) -> dict[str, Any]:
        """The JSON of a whole answer to a request that is encoded; several may share a part.

        Raises:
            ServiceError: there is none; the text says why.
        """
        data = await _within(deadline, lambda: self._reply(path, parts))
        try:
            reply = json.loads(data, parse_constant=_no_number)
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
        parts_sent = (await self.encoded(body),)
        response = await _within(deadline, lambda: self._opened(path, parts_sent))
        try:
            parts, pending, done = response.aiter_raw(), b"", False
            while (data := await _within(deadline, lambda: anext(parts, None))) is not None:
                *events, pending = (pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
                for each in events:
                    if _is_last(each):
                        done = True
                    else:
                        yield each + b"\n\n"
                if len(pending) > MAX_REPLY_BYTES:
                    raise ComputeFailed("the endpoint sends an event that has no end")
            if not done and not _is_last(pending):
                raise Unavailable("the endpoint broke off before the end of its answer")
        finally:
            await response.aclose()

    async def _reply(self, path: str, parts: Sequence[bytes]) -> bytes:
        response = await self._opened(path, parts)
        try:
            return await _whole(response)
        finally:
            await response.aclose()

    async def _opened(self, path: str, parts: Sequence[bytes]) -> httpx.Response:
        """A good answer whose body has not come yet; close it."""
        size = sum(map(len, parts))
        headers = {"content-type": "application/json", "content-length": str(size)}
        request = self._client.build_request(
            "POST", f"{self._url}{path}", content=_pieces(parts), headers=headers
        )
        response = await self._client.send(request, stream=True)
        if response.is_success:
            return response
        try:
            raise self._error(response, await _whole(response))
        finally:
            await response.aclose()

    def _error(self, response: httpx.Response, data: bytes) -> ServiceError:
        status = response.status_code
        said = shown(_message(data), self._key)
        answers = f"the endpoint answers HTTP {status}"
        text = f"{answers}: {said}" if said else answers
        if status == 429:
            after = retry_after(response, MAX_RETRY_SECONDS)
            return Overloaded(text, retry_after=UNKNOWN_RETRY_SECONDS if after is None else after)
        if status in (400, 413, 422):
            return InvalidRequest("request", text)
        # Others are the operator's to read: a wrong key or model, say.
        logger.error("%s", text)
        return DeadlinePassed(answers) if status == 504 else Unavailable(answers)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _within(deadline: float, work: Callable[[], Awaitable[T]]) -> T:
    """Do a part of a request before the deadline.

    A stream's parts are awaited by several tasks, so each has a timeout of its own.
    """
    try:
        async with asyncio.timeout(time_left(deadline)):
            return await work()
    except TimeoutError as error:
        raise DeadlinePassed("the endpoint did not answer before the deadline") from error
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise Unavailable(f"the endpoint is away: {why}") from error


async def _pieces(parts: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for part in parts:
        for start in range(0, len(part), _PIECE_BYTES):
            yield part[start : start + _PIECE_BYTES]


def _is_last(event: bytes) -> bool:
    return event.strip() == b"data: [DONE]"


async def _whole(response: httpx.Response) -> bytes:
    try:
        return await whole_reply(response, MAX_REPLY_BYTES)
    except ReplyTooLong as error:
        raise ComputeFailed(f"the endpoint's answer is {error}") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _message(data: bytes) -> str:
    """What the body of an error says, all of it."""
    try:
        error = json.loads(data)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, RecursionError, LookupError, TypeError):
        said = data.decode("utf-8", "replace")
    return str(said)
