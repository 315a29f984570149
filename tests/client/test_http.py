"""The client over HTTP: targets, answers that go wrong, and forked processes."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import (
    TLS,
    AsyncPolicyClient,
    AsyncRewardClient,
    Clock,
    DeadlineExceeded,
    GenerateItem,
    GuerdonError,
    Internal,
    Item,
    Overloaded,
    PermissionDenied,
    Retry,
    RewardClient,
    Unavailable,
    Unimplemented,
    _http,
)
from guerdon.client.errors import LONGEST_RETRY_AFTER

ITEM = Item("q", ["a", "b"])
REPLY = {
    "items": [{"id": "", "scores": [{"score": 1.5}, {"score": -2.0}]}],
    "info": {"model": "m", "revision": "r", "activation": "none", "compute_mode": "packed"},
    "timing": {"queue": 0.1, "tokenize": 0.0, "compute": 0.25, "total": 0.5},
}


def answer(status: int, body: Any, *, chunked: bool = False) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Reason\r\n"
    if chunked:
        half = len(content) // 2
        parts = [content[:half], content[half:], b""]
        body_bytes = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body_bytes
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def refusal(status: int, code: str, **more: Any) -> bytes:
    return answer(status, {"error": {"code": code, "message": "no", **more}})


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives these answers, one to each connection, and the requests that came."""
    left, requests = list(answers), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        requests.append(head + await reader.readexactly(length))
        writer.write(left.pop(0) if left else b"")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


def no_waiting(waits: list[float]) -> Clock:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return Clock(sleep=sleep, uniform=lambda low, high: low)


@pytest.mark.parametrize(
    "target",
    [
        *("http://", "http://h:x", "http://u:p@h:1", "http://h:1?a", "http://h:1 2"),
        *("http://h\r\nA: b", ["http://a:1", "b:2"], ["http://a:1", "https://b:2"]),
    ],
)
def test_targets_that_are_none(target: Any) -> None:
    with pytest.raises(ValueError, match="target"):
        RewardClient(target)


@pytest.mark.parametrize(
    "target",
    [
        *("http://:s3cret@h:1", "https://s3cret@h", "https://user:s3crät@h", "http://h?s3cret"),
        *("http://:s3cret@h:x", "http://[:s3cret@h", ["http://a", "http://:s3cret@h"]),
        *(["a:1", "http://:s3cret@h"], "grpc://:s3cret@h"),
    ],
)
def test_errors_do_not_show_the_password_of_a_url(target: Any) -> None:
    with pytest.raises(ValueError, match="target") as caught:
        RewardClient(target)
    assert "s3cr" not in str(caught.value)


def test_a_password_in_a_url_is_pointed_to_the_argument() -> None:
    with pytest.raises(ValueError, match="the token is the argument `token`"):
        RewardClient("http://:s3cret@h:1")


def test_settings_are_checked_and_copied(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="https"):
        RewardClient("http://h:1", tls=TLS())
    RewardClient("http://127.0.0.1:1", token="t")
    RewardClient("https://rewards", token="t")
    assert not caplog.records
    RewardClient("http://rewards", token="t")
    assert "clear text" in caplog.text
    client = AsyncRewardClient("https://rewards/guerdon", token="t", timeout=3)
    for other in (copy.deepcopy(client), pickle.loads(pickle.dumps(client))):
        assert str(other._connection.target) == "https://rewards/guerdon"
        assert type(other._connection) is type(client._connection)
        assert other._connection.metadata == client._connection.metadata


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_request_and_its_answer(chunked: bool) -> None:
    async with (
        answering(answer(200, REPLY, chunked=chunked)) as (url, requests),
        AsyncRewardClient(url + "/behind/", token="s3cret", timeout=20) as client,
    ):
        result = await client.score("m", [ITEM], priority="batch")
    assert (result.scores, result.info.revision) == ([[1.5, -2.0]], "r")
    assert (result.timing.queue, result.timing.compute) == (0.1, 0.25)
    head, _, body = requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /behind/v1/score HTTP/1.1"
    assert "authorization: Bearer s3cret" in lines
    sent = json.loads(body)
    assert sent["items"] == [{"id": "", "prompt": "q", "responses": ["a", "b"]}]
    assert sent["options"]["priority"] == "batch"
    assert 0 < sent["timeout"] <= 20


async def test_long_content_goes_also_where_nobody_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_http, "_CONTINUE_SECONDS", 0.01)
    async with answering(answer(200, REPLY)) as (url, requests), AsyncRewardClient(url) as client:
        item = Item("q" * 200_000, ["a", "b"])
        assert (await client.score("m", [item])).scores == [[1.5, -2.0]]
    assert b"Expect: 100-continue" in requests[0]
    assert json.loads(requests[0].partition(b"\r\n\r\n")[2])["items"][0]["prompt"] == item.prompt


async def test_what_may_help_is_tried_again() -> None:
    waits: list[float] = []
    answers = [
        refusal(503, "UNAVAILABLE"),
        refusal(429, "RESOURCE_EXHAUSTED", retry_after=7.5),
        answer(502, b"<html>Bad Gateway</html>"),
        answer(429, b"<html>Too Many Requests</html>"),
        b"",  # the connection is closed
        answer(200, REPLY)[:-5],  # and in the middle of an answer
        answer(200, REPLY),
    ]
    async with (
        answering(*answers) as (url, requests),
        AsyncRewardClient(url, clock=no_waiting(waits)) as client,
    ):
        assert (await client.score("m", [ITEM])).scores == [[1.5, -2.0]]
    assert len(requests) == 7
    assert waits == [0.0, 7.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("seconds", "waited"),
    [
        *((b"1e400", LONGEST_RETRY_AFTER), (b"1e300", LONGEST_RETRY_AFTER)),
        *((b"1" + b"0" * 400, LONGEST_RETRY_AFTER), (b"-1e300", 0.0), (b"NaN", 0.0)),
    ],
)
async def test_no_time_to_come_back_after_breaks_the_call(seconds: bytes, waited: float) -> None:
    waits: list[float] = []
    error = b'{"code": "RESOURCE_EXHAUSTED", "message": "no", "retry_after": %s}' % seconds
    answers = answer(429, b'{"error": %s}' % error), answer(200, REPLY)
    async with (
        answering(*answers) as (url, _),
        AsyncRewardClient(url, clock=no_waiting(waits), timeout=None) as client,
    ):
        assert (await client.score("m", [ITEM])).scores == [[1.5, -2.0]]
    assert waits == [waited]


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (refusal(429, "RESOURCE_EXHAUSTED"), Overloaded, "no"),
        (answer(413, b"too large"), Overloaded, "HTTP status 413"),
        (answer(403, b"<html>"), PermissionDenied, "HTTP status 403"),
        (answer(404, b"<html>"), Unimplemented, "HTTP status 404"),
        (answer(301, b""), GuerdonError, "HTTP status 301"),
        (answer(400, b"[" * 100_000), GuerdonError, "HTTP status 400"),
        (answer(200, b"[" * 100_000), Internal, "can't be read"),
        (answer(200, b"<html>"), Internal, "can't be read"),
        (answer(200, {}), Internal, "can't be read"),
        (answer(200, {**REPLY, "items": []}), Internal, "0 items for 1"),
        (answer(200, {**REPLY, "items": [{"scores": [{"score": 1.0}]}]}), Internal, "1 scores"),
        (
            answer(200, {**REPLY, "items": [{"scores": [{"score": float("nan")}] * 2}]}),
            Internal,
            "can't be read",
        ),
        (
            answer(200, {**REPLY, "items": [{"scores": [{"score": "high"}] * 2}]}),
            Internal,
            "can't be read",
        ),
    ],
)
async def test_what_is_no_answer_is_an_error_at_once(
    reply: bytes, kind: type[GuerdonError], message: str
) -> None:
    async with answering(reply) as (url, requests), AsyncRewardClient(url) as client:
        with pytest.raises(kind, match=message) as caught:
            await client.score("m", [ITEM])
    assert type(caught.value) is kind
    assert len(requests) == 1


WHOLE: dict[str, Any] = {
    "score": 1.5,
    "steps": [{"score": 1.5, "token_index": 3}],
    "attributes": [{"name": "helpful", "value": 1.5}],
    "members": [1.5],
    "dropped": ["answer_reasoning"],
}
NOT_SCORES = [
    *({}, {"value": 3}, {"score": None}, {"score": True}, {"score": "1.5"}),
    {**WHOLE, "steps": [{"token_index": 3}]},
    {**WHOLE, "steps": [{"score": None, "token_index": 3}]},
    {**WHOLE, "steps": [{"score": 1.5}]},
    {**WHOLE, "attributes": [{"name": "helpful", "value": None}]},
    {**WHOLE, "attributes": [{"name": "helpful"}]},
    {**WHOLE, "members": [None]},
    {**WHOLE, "dropped": ["something new"]},
]


def scored(score: Any) -> Any:
    return {**REPLY, "items": [{"id": "", "scores": [score]}]}


def ranked(*ranking: Any) -> Any:
    return {"ranking": ranking, "info": REPLY["info"], "timing": REPLY["timing"]}


@pytest.mark.parametrize("score", NOT_SCORES)
async def test_what_is_missing_of_a_score_is_not_made_up(score: Any) -> None:
    replies = scored(score), ranked({"index": 0, "score": score})
    answers = [answer(200, reply) for reply in replies]
    async with answering(*answers) as (url, requests), AsyncRewardClient(url) as client:
        with pytest.raises(Internal, match="can't be read"):
            await client.score("m", [Item("q", ["a"])])
        with pytest.raises(Internal, match="can't be read"):
            await client.rank("m", "q", ["a"])
    assert len(requests) == 2


async def test_a_whole_score_is_read() -> None:
    replies = scored(WHOLE), ranked({"index": 0, "score": WHOLE})
    answers = [answer(200, reply) for reply in replies]
    async with answering(*answers) as (url, _), AsyncRewardClient(url) as client:
        (score,) = (await client.score("m", [Item("q", ["a"])])).items[0].scores
        (place,) = (await client.rank("m", "q", ["a"])).ranking
    assert place.score == score
    assert (score.score, score.members, score.dropped) == (1.5, (1.5,), ("answer_reasoning",))
    assert (score.steps[0].score, score.attributes) == (1.5, {"helpful": 1.5})


@pytest.mark.parametrize("entry", [{}, {"index": None}])
async def test_a_place_that_is_missing_is_not_made_up(entry: Any) -> None:
    reply = answer(200, ranked({**entry, "score": {"score": 1.5}}))
    async with answering(reply) as (url, _), AsyncRewardClient(url) as client:
        with pytest.raises(Internal, match="can't be read"):
            await client.rank("m", "q", ["a"])


async def test_the_sampler_is_for_grpc_alone() -> None:
    async with AsyncPolicyClient("http://127.0.0.1:1") as policy:
        with pytest.raises(Unimplemented, match="GetPolicy is for gRPC alone"):
            await policy.get_policy()
        with pytest.raises(Unimplemented, match="Generate is for gRPC alone"):
            await anext(policy.generate([GenerateItem("q")], max_tokens=1))


async def test_a_list_is_asked_in_turns_and_nobody_there_is_said() -> None:
    async with answering(answer(200, REPLY)) as (url, _):
        target = ["http://127.0.0.1:1", url]
        async with AsyncRewardClient(target, clock=no_waiting([])) as client:
            assert (await client.score("m", [ITEM])).scores == [[1.5, -2.0]]
    refused = pytest.raises(Unavailable, match=r"^cannot connect to 127\.0\.0\.1:1: Connection")
    with RewardClient("http://127.0.0.1:1", retry=Retry(attempts=1)) as absent, refused:
        absent.score("m", [ITEM])
    in_time = pytest.raises((DeadlineExceeded, Unavailable), match="cannot connect")
    with RewardClient("http://127.0.0.1:1", timeout=0.3) as absent, in_time:
        absent.score("m", [ITEM])


FORKED = """
import multiprocessing, os, sys
from guerdon.client import Item, RewardClient

def score(place):
    return asked(client, place)

def asked(client, place):
    return client.score("m", [Item(f"question {place}", ["a", "b c"])]).scores

url, address = sys.argv[1:]
with RewardClient(url) as client, RewardClient(address) as over_grpc:
    expected = [asked(over_grpc, i) for i in range(6)]
    close = lambda found: all(
        abs(x - y) < 1e-4 for (f,), (e,) in zip(found, expected) for x, y in zip(f, e)
    )
    assert close([score(i) for i in range(6)])
    child = os.fork()
    if child == 0:
        os._exit(0 if close([score(i) for i in range(6)]) else 1)
    assert os.waitpid(child, 0)[1] == 0, "a child has the parent's client"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert close(pool.map(score, range(6), chunksize=1))
    assert close([score(i) for i in range(6)]), "the parent goes on"
"""


@pytest.mark.slow
def test_forked_processes_use_the_client_of_their_parent(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama", seed=5)
    with running_server({"m": folder}, dtype="float32") as server:
        command = [sys.executable, "-c", FORKED, server.url, server.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
