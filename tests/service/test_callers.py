"""Who calls, and what it may do: tokens, roles, classes, addresses."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.in_process import until

from guerdon.reward.config import RewardConfig, load_config
from guerdon.serving.access.callers import (
    Callers,
    named_tokens,
    peer_address,
    read_tokens,
    single_tokens,
)
from guerdon.serving.access.identity import Caller, Role
from guerdon.serving.errors import PermissionDenied, Unauthenticated
from guerdon.settings import SettingsError
from guerdon.v1 import common_pb2, reward_pb2

from .conftest import start_server
from .fake import MAX_TOKENS
from .messages import item, score_request

PEER = "ipv4:10.0.0.7:40001"
DIGEST = hashlib.sha256(b"t0ken-of-jobs").hexdigest()
FILE = f"""
[callers.search]
token = "t0ken-of-search"
roles = ["score"]
share = 3
max_calls = 5
max_tokens = 1000
[callers.jobs]
token_sha256 = "{DIGEST.upper()}"
roles = ["score", "sample", "weights"]
classes = ["batch"]
[callers.operator]
token = "t0ken-of-operator"
roles = ["admin"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tokens.toml"
    path.write_text(text)
    return path


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path, FILE)


def test_named_callers(tokens: Path) -> None:
    callers = Callers(named_tokens(tokens))
    found = callers.identify("Bearer t0ken-of-search", PEER, Role.SCORE)
    assert found == Caller(
        name="search",
        key="search",
        share=3.0,
        max_calls=5,
        max_tokens=1000,
        classes=frozenset({"online", "batch"}),
    )
    jobs = callers.identify(b"bearer t0ken-of-jobs", "", Role.WEIGHTS)
    assert (jobs.name, jobs.classes, jobs.max_calls) == ("jobs", frozenset({"batch"}), None)
    assert callers.identify("Bearer t0ken-of-operator", PEER, None).name == "operator"
    for header in (
        None,
        "",
        "Bearer",
        "Bearer t0ken-of-searc",
        "Basic t0ken-of-search",
        "Bearer é",
        f"Bearer {DIGEST}",
    ):
        for role in (*Role, None):
            with pytest.raises(Unauthenticated):
                callers.identify(header, PEER, role)
    for token, role in (
        ("search", Role.ADMIN),
        ("jobs", Role.ADMIN),
        ("operator", Role.SCORE),
        ("search", Role.WEIGHTS),
        ("search", Role.SAMPLE),
    ):
        with pytest.raises(PermissionDenied, match=f"'{token}' has not the role '{role.value}'"):
            callers.identify(f"Bearer t0ken-of-{token}", PEER, role)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no caller"),
        ("[caller.x]", "unknown setting"),
        ("[callers.x]\ntokn = 'a'", "did you mean"),
        ("[callers.x]\nroles = ['score']", "give either token or token_sha256"),
        ("[callers.x]\ntoken = 'a'", "roles and classes must name at least one each"),
        ("[callers.x]\ntoken = 'a'\nroles = ['scores']", "it must be one of score, sample, admin"),
        ("[callers.x]\ntoken = 'a'\nroles = ['score']\nclasses = ['fast']", "online, batch"),
        ("[callers.x]\ntoken = 'é'\nroles = ['score']", "printable ASCII"),
        ("[callers.x]\ntoken = 'a '\nroles = ['score']", "space"),
        ("[callers.x]\ntoken_sha256 = 'ab'\nroles = ['score']", "64 hexadecimal digits"),
        ("[callers.x]\ntoken = 'a'\nroles = ['score']\nshare = 0", "share is 0"),
        ("[callers.x]\ntoken = 'a'\nroles = ['score']\nshare = inf", "share is inf"),
        ("[callers.x]\ntoken = 'a'\nroles = ['score']\nmax_calls = 0", "max_calls is 0"),
        ("[callers.anonymous]\ntoken = 'a'\nroles = ['score']", "cannot name a caller"),
        ("[callers.'a b']\ntoken = 'a'\nroles = ['score']", "cannot name a caller"),
        ("[callers.x]\ntoken = 'a'\nroles = ['score']\n"
         "[callers.y]\ntoken = 'a'\nroles = ['score']", "'y' and 'x' have the same token"),
    ],
)  # fmt: skip
def test_refused_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        named_tokens(write(tmp_path, text))
    assert said in str(caught.value)


def test_a_tokens_file_and_a_single_token_are_one_too_many(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, {"tokens": tokens})
    assert config == RewardConfig(tokens=tokens)
    assert read_tokens(config).own_admin
    monkeypatch.setenv("GUERDON_TOKEN", "x")
    with pytest.raises(SettingsError, match="cannot both be given"):
        read_tokens(config)


def test_the_single_tokens() -> None:
    nothing = Callers(single_tokens("", ""))
    for role in (*Role, None):
        assert nothing.identify("Bearer whatever", PEER, role) == Caller(key="10.0.0.7")
    shared = Callers(single_tokens("for-all", ""))
    for allowed in (Role.SCORE, Role.SAMPLE, Role.WEIGHTS, None):
        found = shared.identify("Bearer for-all", PEER, allowed)
        assert found == Caller(name="shared", key="10.0.0.7")  # who shares it, the address says
        with pytest.raises(Unauthenticated):
            shared.identify(None, PEER, allowed)
    assert shared.identify(None, PEER, Role.ADMIN).name == "anonymous"
    both = Callers(single_tokens("for-all", "for-admin"))
    assert both.identify("Bearer for-admin", PEER, Role.WEIGHTS).name == "admin"
    for token, role in (
        ("for-all", Role.WEIGHTS),
        ("for-all", Role.ADMIN),
        ("for-admin", Role.SCORE),
    ):
        with pytest.raises(PermissionDenied):
            both.identify(f"Bearer {token}", PEER, role)
    same = Callers(single_tokens("one", "one"))
    for role in (*Role, None):
        same.identify("Bearer one", PEER, role)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:51000", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"),
        ("ipv6:%5B::1%5D:51000", "::/64"), ("ipv6:[2001:db8:1:2:3::4]:1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"), ("ipv6:[::ffff:10.0.0.7]:9", "10.0.0.7"),
        ("ipv6:[fe80::1%25eth0]:9", "fe80::/64"), ("unix:/run/socket", "unix"), ("unix:", "unix"),
        ("", ""), ("testclient", "testclient"),
    ],
)  # fmt: skip
def test_addresses(peer: str, address: str) -> None:
    assert peer_address(peer) == address


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer t0ken-of-{token}")]


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_roles_guard_every_door(tokens: Path) -> None:
    async with start_server(tokens=tokens) as served:
        score = served.rewards.Score
        assert (await score(score_request(), metadata=bearer("search"))).items
        code, said = await failure(score(score_request(), metadata=bearer("operator")))
        assert (code, said) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "the caller 'operator' has not the role 'score'",
        )
        rank = reward_pb2.RankRequest(model="m", prompt=common_pb2.Prompt(text="a"))
        stream = served.rewards.ScoreStream(iter([]), metadata=bearer("operator"))
        for call, expected in (
            (score(score_request()), grpc.StatusCode.UNAUTHENTICATED),
            (served.rewards.Rank(rank, metadata=bearer("operator")), code),
            (stream.read(), code),
        ):
            assert (await failure(call))[0] is expected
        models = reward_pb2.ListModelsRequest()
        assert (await served.rewards.ListModels(models, metadata=bearer("operator"))).models
        assert (await failure(served.rewards.ListModels(models)))[0] is (
            grpc.StatusCode.UNAUTHENTICATED
        )
        from guerdon.v1 import admin_pb2

        load = admin_pb2.LoadModelRequest(name="x", path="second")
        for token, expected in (
            ((), grpc.StatusCode.UNAUTHENTICATED),
            (bearer("search"), grpc.StatusCode.PERMISSION_DENIED),
        ):
            found = await failure(served.admin.LoadModel(load, metadata=token))
            assert found[0] is expected
        assert (await served.admin.LoadModel(load, metadata=bearer("operator"))).model.name == "x"
        for http_token, status in ((None, 401), ("operator", 403), ("search", 200)):
            headers = {"authorization": f"Bearer t0ken-of-{http_token}"} if http_token else {}
            body = {"model": "m", "items": [{"prompt": "a", "responses": ["b"]}]}
            reply = await served.http.post("/v1/score", json=body, headers=headers)
            assert reply.status_code == status
        assert reply.json()["items"]


async def test_a_caller_of_batch_work_alone_may_not_ask_for_online(tokens: Path) -> None:
    async with start_server(tokens=tokens) as served:
        for asked in (common_pb2.PRIORITY_CLASS_UNSPECIFIED, common_pb2.PRIORITY_CLASS_ONLINE):
            request = score_request(item(), priority=asked)
            code, said = await failure(served.rewards.Score(request, metadata=bearer("jobs")))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert said == (
                "options.priority: the caller 'jobs' may ask for batch alone, and this is online"
            )
        batch = score_request(item(), priority=common_pb2.PRIORITY_CLASS_BATCH)
        assert (await served.rewards.Score(batch, metadata=bearer("jobs"))).items


async def test_a_caller_with_as_many_calls_as_it_may_is_shed_and_others_are_not(
    tmp_path: Path,
) -> None:
    text = FILE.replace("max_calls = 5\nmax_tokens = 1000", "max_calls = 2")
    async with start_server(tokens=write(tmp_path, text)) as served:
        served.behaviour.gate.clear()
        score = served.rewards.Score
        held = [score(score_request(), metadata=bearer("search")) for _ in range(2)]
        await served.until_metric(
            'guerdon_caller_requests_in_flight{caller="search"}', lambda value: value == 2
        )
        code, said = await failure(score(score_request(), metadata=bearer("search")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert said == "2 calls of 'search' are being served, which is its max_calls"
        batch = score_request(item(), priority=common_pb2.PRIORITY_CLASS_BATCH)
        other = score(batch, metadata=bearer("jobs"))
        served.behaviour.gate.set()
        for call in (*held, other):
            assert (await call).items
        await score(score_request(), metadata=bearer("search"))
        counted = 'guerdon_caller_requests_total{caller="search",class="online",code="%s"}'
        assert await served.metric(counted % "OK") == 3
        assert await served.metric(counted % "RESOURCE_EXHAUSTED") == 1
        tokens = [
            await served.metric(f'guerdon_caller_tokens_total{{caller="{name}",class="{of}"}}')
            for name, of in (("search", "online"), ("jobs", "batch"))
        ]
        assert tokens[0] == 3 * tokens[1] > 0


async def test_who_fills_the_queue_is_shed_and_another_caller_is_served(tmp_path: Path) -> None:
    text = FILE.replace('classes = ["batch"]\n', "").replace("share = 3\n", "")
    tokens = write(tmp_path, text.replace("max_calls = 5\nmax_tokens = 1000\n", ""))
    async with start_server(tokens=tokens, queue={"max_queued_tokens": 100}) as served:
        served.behaviour.gate.clear()
        greedy = [
            served.rewards.Score(score_request(item("a b c d", "e")), metadata=bearer("jobs"))
            for _ in range(40)
        ]
        shed = 'guerdon_caller_requests_total{caller="jobs",class="online",code="%s"}'
        await served.until_metric(shed % "RESOURCE_EXHAUSTED", lambda value: value >= 20)
        modest = served.rewards.Score(score_request(), metadata=bearer("search"))
        await served.until_metric('guerdon_queue_items{class="online"}', lambda n: n == 17)
        served.behaviour.gate.set()
        assert (await modest).items
        ends = await asyncio.gather(*greedy, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
        assert len(refused) == 24  # 80 of 100 tokens are 16 calls
        assert {end.code() for end in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all("holds its share" in (end.details() or "") for end in refused)


async def test_who_opens_calls_without_end_leaves_room_for_another(tmp_path: Path) -> None:
    tokens = write(tmp_path, FILE.replace('classes = ["batch"]\n', ""))
    async with start_server(tokens=tokens, max_calls=10) as served:
        streams = [served.rewards.ScoreStream(metadata=bearer("jobs")) for _ in range(8)]
        asked = reward_pb2.ScoreStreamRequest(request_id="1", model="m", item=item())
        for stream in streams:
            await stream.write(asked)
            assert (await stream.read()).HasField("scores")  # so the server knows of the stream
        code, said = await failure(served.rewards.Score(score_request(), metadata=bearer("jobs")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "8 calls of 'jobs' are being served" in said
        assert (await served.rewards.Score(score_request(), metadata=bearer("search"))).items
        for stream in streams:
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
        assert (await served.rewards.Score(score_request(), metadata=bearer("jobs"))).items


async def test_a_text_that_is_too_long_keeps_nobody_out() -> None:
    async with start_server(encode_threads=2) as served:
        served.behaviour.long_texts.clear()
        long = served.rewards.Score(score_request(item("a " * 2**20, "b")))
        await until(served.behaviour.long_entered.is_set)
        # It holds what the model takes at most, not a token for each three of its bytes.
        assert await served.metric('guerdon_queue_tokens{class="online"}') == MAX_TOKENS
        for _ in range(5):
            assert (await served.rewards.Score(score_request(), timeout=30)).items
        served.behaviour.long_texts.set()
        code, _ = await failure(long)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
