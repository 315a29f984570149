"""The HTTP side bounds what strangers can do: headers, bodies, connections, logs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from tests.support.in_process import until

from guerdon.reward.wire.schemas import RankBody, ScoreBody
from guerdon.sampler.wire.schemas import GenerateBody
from guerdon.serving.http import bodies, server
from guerdon.serving.logs import RateLimit

from .conftest import Harness, start_server

HOST = b"Host: x\r\n"
POST = b"POST /v1/score HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
SCORE = {"model": "m", "items": [{"prompt": "a b", "responses": ["c"]}]}
JSON = {"content-type": "application/json"}


class Wire:
    """A plain connection to the HTTP port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of an answer; (0, b"") when the connection is closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        return int(head.split()[1]), await self.reader.readexactly(length)


@contextlib.asynccontextmanager
async def connected(served: Harness, *sent: bytes) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.ports.http_port)
    for data in sent:
        writer.write(data)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def healthy(served: Harness) -> None:
    async with httpx.AsyncClient(base_url=str(served.http.base_url), timeout=60) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_a_stranger_is_refused_before_its_body_comes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("sesame")
    async with start_server(token_file=file) as served:
        announced = b"Content-Length: 4000000\r\n\r\n"
        for headers in (b"", b"Authorization: Bearer wrong\r\n"):
            async with connected(served, POST + headers + announced) as wire:
                code, body = await wire.answer()
                assert (code, json.loads(body)["error"]["code"]) == (401, "UNAUTHENTICATED")
        # Who sends all the same still reads the answer.
        large = b"x" * 4_000_000
        reply = await served.http.post("/v1/score", content=large, headers=JSON)
        assert reply.status_code == 401
        line = 'guerdon_refused_calls_total{code="UNAUTHENTICATED",method="http_score"}'
        assert await served.metric(line) == 3
        token = {"authorization": "Bearer sesame"}
        assert (await served.http.post("/v1/score", json=SCORE, headers=token)).status_code == 200


async def test_open_paths_take_no_body(served: Harness) -> None:
    for path in ("/healthz", "/metrics", "/nothing", "/docs", "/", "/playground/rank.js"):
        reply = await served.http.post(path, content=b"x" * 100_000)
        assert reply.status_code == 413
    await healthy(served)


async def test_a_body_that_does_not_come_is_not_waited_for(
    served: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(bodies, "DISCARD_SECONDS", 0.1)
    async with connected(served, POST + b"Content-Length: 100\r\n\r\n{") as wire:
        assert (await wire.answer())[0] == 408
        assert await wire.reader.read() == b""
    await served.still_serves()


async def test_bodies_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "HELD_BODIES", 1)
    async with start_server(max_body_bytes=1000) as served:
        async with connected(served, POST + b"Content-Length: 1000\r\n\r\n" + b" " * 900):
            while True:  # until the half of a body has been read
                reply = await served.http.post("/v1/score", content=b" " * 900, headers=JSON)
                if reply.status_code == 429:
                    break
        assert float(reply.headers["retry-after"]) >= 1
        while reply.status_code == 429:  # until it has been given up
            reply = await served.http.post("/v1/score", json=SCORE)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\nGET /he"]
)
async def test_headers_that_do_not_come_are_not_waited_for(
    served: Harness, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    async with connected(served, sent) as wire:
        await wire.reader.read()  # ends when the server closes
    await healthy(served)


@pytest.mark.parametrize("line", [b"A: " + b"a" * 100_000, b"A: b\r\n" * 20_000])
async def test_headers_without_end_are_refused(served: Harness, line: bytes) -> None:
    async with connected(served, b"GET /healthz HTTP/1.1\r\n" + HOST + line) as wire:
        with contextlib.suppress(ConnectionError):
            answer = await wire.reader.read()
            assert answer == b"" or b" 400 " in answer
    await healthy(served)


async def test_a_request_of_two_lengths_is_refused(served: Harness) -> None:
    """Content-Length beside chunks: one of them smuggles a request past a proxy."""
    sent = (
        POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    )
    async with connected(served, sent) as wire:
        answers = await wire.reader.read()
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


async def test_a_body_does_not_wait_until_the_headers_are_acknowledged(served: Harness) -> None:
    async with connected(served, POST):
        connections = served.server._listener._http[0]._server.server_state.connections
        await until(lambda: bool(connections))
        (connection,) = connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_idle_connections_make_room_for_new_ones() -> None:
    async with start_server(http_connections=8) as served, contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(served)) for _ in range(30)]
        await healthy(served)
        for wire in idle[:20]:  # the oldest went first
            with contextlib.suppress(ConnectionError):
                assert await wire.reader.read() == b""
        assert (await served.http.post("/v1/score", json=SCORE)).status_code == 200


async def test_a_shortage_of_descriptors_is_outlived_and_not_written_without_end(
    served: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    real, failures = loop.sock_accept, iter(range(50))

    async def accept(listener: Any) -> Any:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return await real(listener)

    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 0.001)
    monkeypatch.setattr(loop, "sock_accept", accept)
    await healthy(served)  # the accept under way takes this one, the next ones fail
    while next(failures, None) is not None:  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0.001)
    await healthy(served)
    assert 1 <= caplog.text.count("Too many open files") <= 10


def test_a_message_is_let_through_a_few_times_and_counted() -> None:
    limit = RateLimit(most=2, seconds=3600)
    records = [logging.LogRecord("x", 40, "f", 1, text, (), None) for text in "aabaab"]
    assert [limit.filter(record) for record in records] == [True, True, True, False, False, True]
    limit = RateLimit(most=1, seconds=0)
    assert all(limit.filter(record) for record in records)


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b'{"model":"m","items":[' + b"[]," * 1_300_000 + b"[]]}", "body", "lists and objects"),
        (b'{"model":"m","items":[' + b"0," * 1_900_000 + b"0]}", "items", "the limit is 4096"),
        (
            b'{"model":"m","items":[{"prompt":{"token_ids":['
            + b"-1," * 600_000
            + b'-1]},"responses":[{"token_ids":[1]}]}]}',
            "items[0].prompt.token_ids[0]",
            "greater than or equal to 0",
        ),
        (
            b'{"model":"m","items":[{"prompt":"a","responses":[' + b'"",' * 1_300_000 + b'""]}]}',
            "items",
            "the limit is 16384",
        ),
        (
            b"{" + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}",
            "body",
            "more than 256 fields",
        ),
        (b'{"a":"' + b'\\"' * 1_900_000, "body", "not valid JSON"),
    ],
    ids=["lists", "items", "tokens", "responses", "keys", "quotes"],
)
async def test_a_large_body_ends_at_its_first_fault(
    served: Harness, body: bytes, field: str, said: str
) -> None:
    reply = await served.http.post("/v1/score", content=body, headers=JSON)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["field"] == field
    assert said in error["message"]
    await served.still_serves()


async def test_brackets_in_text_are_text(served: Harness) -> None:
    asked = {"model": "m", "items": [{"prompt": '[{\\"' * 100_000, "responses": ['"]' * 1000]}]}
    assert (await served.http.post("/v1/score", json=asked)).status_code == 200


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ScoreBody, {"model": "m", "items": [7] * 100}),
        (ScoreBody, {"model": "m", "items": [{"prompt": "a", "responses": [7] * 100}]}),
        (ScoreBody, {"model": "m", "items": [{"prompt": [7] * 100, "responses": ["a"]}]}),
        (RankBody, {"model": "m", "prompt": {"token_ids": [-1] * 100}, "candidates": ["a"]}),
        (RankBody, {"model": "m", "prompt": "a", "candidates": [7] * 100}),
        (GenerateBody, {"items": [7] * 100, "options": {"max_tokens": 1}}),
        (
            GenerateBody,
            {
                "items": [{"prompt": "a"}],
                "options": {"max_tokens": 1, "stop_token_ids": ["a"] * 100},
            },
        ),
    ],
)
def test_checking_a_list_stops_at_the_first_fault(kind: Any, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(value)
    assert caught.value.error_count() == 1


async def test_only_json_is_taken_as_json(served: Harness) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        reply = await served.http.post(
            "/v1/score", content=json.dumps(SCORE), headers={"content-type": content_type}
        )
        assert reply.status_code == 400
        assert reply.json()["error"]["field"] == "body"
