"""The reward service over HTTP, for processes in which gRPC can't be: forked ones.

`HttpChannel` stands in for a gRPC channel: the stubs of `guerdon.v1` call it with messages, and it
asks the JSON twins of their methods, so that scoring, retries and checks are the same code. Each
request has a TCP connection of its own, on the event loop that asks; a fork has nothing to break.
"""

# ruff: noqa: ASYNC109 - the timeout is the call's, which travels to the server
from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import grpc
from google.protobuf.message import Message

from guerdon.addresses import is_loopback
from guerdon.client import _http_json as twins
from guerdon.client._channel import Target
from guerdon.client._connection import Connection
from guerdon.client._retry import Deadline
from guerdon.client.config import TLS
from guerdon.client.errors import (
    DeadlineExceeded,
    GuerdonError,
    Internal,
    Overloaded,
    Unavailable,
    Unimplemented,
    from_status,
)

Answer = tuple[int, bytes]
"""Status and body of a reply."""

_HEAD_BYTES = 64 * 1024
"""Most bytes of a reply's head."""
_UNASKED_BYTES = 32 * 1024
"""Most content that is sent before the server has said that it wants it."""
_CONTINUE_SECONDS = 1.0
"""How long it may take to say so; then the content is sent, for some proxies never do."""


class HttpTarget(Target):
    """The URLs of the servers' HTTP sides.

    Args:
        target: `http://host:port` or `https://…`, perhaps with a path that stands before `/v1`; or
            a list of them.

    Raises:
        ValueError: it is no such thing.
    """

    def __init__(self, target: str | Sequence[str]) -> None:
        self.endpoints = [target] if isinstance(target, str) else list(target)
        self.urls = [_url(endpoint) for endpoint in self.endpoints]
        if len({url.scheme for url in self.urls}) > 1:
            raise ValueError("target must not mix http:// and https://")

    @property
    def several(self) -> bool:
        """Nothing for gRPC to balance: requests go round the list here."""
        return False

    @property
    def encrypted(self) -> bool:
        """Whether the URLs say https."""
        return self.urls[0].scheme == "https"

    @property
    def loopback(self) -> bool:
        """Whether tokens stay on this machine."""
        return all(is_loopback(url.hostname or "") for url in self.urls)


def _url(endpoint: str) -> SplitResult:
    """The parts of a URL, which no error quotes: it may hold a password."""
    try:
        url = urlsplit(endpoint)
        url.port  # noqa: B018 - it raises where that is no port
    except (ValueError, AttributeError):
        url = urlsplit("")
    if "@" in url.netloc:
        raise ValueError("target must hold no user or password: the token is the argument `token`")
    beyond = url.query or url.fragment
    visible = isinstance(endpoint, str) and re.fullmatch(r"[!-~]+", endpoint)
    if url.scheme not in ("http", "https") or not url.hostname or beyond or not visible:
        raise ValueError("target must be http://host:port, as every entry of a list")
    return url


class HttpConnection(Connection):
    """The connection of a client whose target is a URL."""

    def __init__(self, target: str | Sequence[str], *, tls: TLS | None, **settings: Any) -> None:
        urls = HttpTarget(target)
        if tls is not None and not urls.encrypted:
            raise ValueError("tls needs a target that begins with https://")
        super().__init__(urls, tls=(tls or TLS()) if urls.encrypted else None, **settings)
        self._urls = urls.urls
        self._http: HttpChannel | None = None
        self._process = 0

    async def channel(self, deadline: Deadline | None = None) -> grpc.aio.Channel:
        """What the stubs take for a channel; a forked process gets its own.

        Raises:
            RuntimeError: the client is closed.
        """
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._http is None or self._process != os.getpid():
            self._process = os.getpid()
            self._http = HttpChannel(self._urls, self._tls, self._max_reply_bytes)
        return cast(grpc.aio.Channel, self._http)

    async def close(self) -> None:
        """Cancel the calls that this process has under way."""
        self._closed = True
        if self._http is not None and self._process == os.getpid():
            await self._http.close()


class HttpChannel:
    """Answers the methods of a stub over HTTP.

    Args:
        urls: the servers, which are asked in turns.
        tls: encrypt, or None.
        max_reply_bytes: the largest body that may come.
    """

    def __init__(self, urls: Sequence[SplitResult], tls: TLS | None, max_reply_bytes: int) -> None:
        self._urls = itertools.cycle(urls)
        self._context = None if tls is None else _context(tls)
        self._server_name = None if tls is None else tls.server_name
        self._max_reply_bytes = max_reply_bytes
        self._under_way: set[asyncio.Task[Answer]] = set()

    def unary_unary(self, method: str, **_: Any) -> Callable[..., Awaitable[Message]]:
        """The method of a stub, by its path."""
        twin = twins.TWINS.get(method)
        if twin is None:
            return self.stream_stream(method)

        async def call(request: Any, *, timeout: float | None, metadata: Any) -> Message:
            body = twin.body(request)
            if body is not None and timeout is not None:
                body["timeout"] = timeout
            status, content = await self._ask(twin.path, body, dict(metadata), timeout)
            if status not in twin.answers:
                raise from_status(twins.error_status(status, content))
            try:
                return twin.reply(request, status, content)
            except GuerdonError:  # some are ValueErrors, too
                raise
            except twins.UNREADABLE as error:
                raise Internal(f"the server's answer to {twin.path} can't be read") from error

        return call

    def stream_stream(self, method: str, **_: Any) -> Callable[..., Any]:
        """A method that HTTP does not have."""

        def refuse(*_: Any, **__: Any) -> Any:
            name = method.rpartition("/")[2]
            raise Unimplemented(f"{name} is for gRPC alone: give the gRPC port, as host:port")

        return refuse

    stream_unary = unary_stream = stream_stream

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._under_way:
            task.cancel()

    async def _ask(
        self, path: str, body: Any, headers: dict[str, str], timeout: float | None
    ) -> Answer:
        request = self._exchange(next(self._urls), path, body, headers)
        asking = asyncio.ensure_future(request)
        self._under_way.add(asking)
        try:
            async with asyncio.timeout(timeout):
                return await asking
        except TimeoutError:
            raise DeadlineExceeded("no answer within the timeout of the call") from None
        finally:
            asking.cancel()
            self._under_way.discard(asking)

    async def _exchange(
        self, url: SplitResult, path: str, body: Any, headers: dict[str, str]
    ) -> Answer:
        host, port = url.hostname, url.port or (443 if self._context else 80)
        name = (self._server_name or host) if self._context else None
        try:
            reader, writer = await asyncio.open_connection(
                host, port, ssl=self._context, server_hostname=name
            )
        except OSError as error:
            refused = isinstance(error, ConnectionError) and error.errno
            reason = os.strerror(error.errno or 0) if refused else error.strerror or error
            raise Unavailable(f"cannot connect to {host}:{port}: {reason}") from error
        try:
            begun = await _send(reader, writer, *_request(url, path, body, headers))
            status, content = _parse(begun + await self._read(reader))
            if len(content) > self._max_reply_bytes:
                raise self._too_large()
            return status, content
        except (OSError, EOFError, asyncio.LimitOverrunError, http.client.HTTPException) as error:
            raise Unavailable(f"the connection to {host}:{port} broke: {error!r}") from error
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """All that comes until the server closes the connection, as it is asked to."""
        received = bytearray()
        while data := await reader.read(_HEAD_BYTES):
            received += data
            if len(received) > self._max_reply_bytes + _HEAD_BYTES:
                raise self._too_large()
        return bytes(received)

    def _too_large(self) -> Overloaded:
        most = f"the {self._max_reply_bytes} bytes of Limits(max_reply_bytes=…)"
        return Overloaded(f"the reply is larger than {most}")


def _context(tls: TLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca)
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def _request(
    url: SplitResult, path: str, body: Any, headers: dict[str, str]
) -> tuple[bytes, bytes]:
    """Head and content of a request."""
    content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    head = [
        f"{'GET' if body is None else 'POST'} {url.path.rstrip('/')}{path} HTTP/1.1",
        f"Host: {url.netloc}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if len(content) > _UNASKED_BYTES:
        head.append("Expect: 100-continue")
    return "\r\n".join([*head, "", ""]).encode("ascii"), content


async def _send(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, content: bytes
) -> bytes:
    """Send a request, and return what has come of its answer.

    Whether a long one is wanted is asked first: a server that refuses it closes the connection,
    and what it said would be lost while the content is being written.
    """
    if len(content) <= _UNASKED_BYTES:
        writer.write(head + content)
        return b""
    writer.write(head)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CONTINUE_SECONDS):
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 100"):
                return answer
    writer.write(content)
    return b""


class _Received:
    """Bytes in the place of a socket, for `http.client` to parse."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _parse(data: bytes) -> Answer:
    """Status and body of a reply.

    Raises:
        http.client.HTTPException: it is none, or not whole.
    """
    response = http.client.HTTPResponse(cast(Any, _Received(data)))
    response.begin()
    return response.status, response.read()
