"""What a client is made with: checked when it is made, kept when it is pickled."""

# ruff: noqa: SIM117 - server and client are nested as they live
from __future__ import annotations

import asyncio
import copy
import math
import pickle
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from guerdon.client import (
    TLS,
    AdminClient,
    AsyncAdminClient,
    AsyncPolicyClient,
    AsyncRewardClient,
    Clock,
    GenerateItem,
    InvalidArgument,
    Item,
    Limits,
    PolicyClient,
    Retry,
    RewardClient,
    Unavailable,
)
from guerdon.client._channel import Target
from guerdon.client.testing import FakePolicyServer, FakeRewardServer

ITEMS = [Item("p", ["abc"])]
CLIENTS: list[Any] = [
    RewardClient,
    PolicyClient,
    AdminClient,
    AsyncRewardClient,
    AsyncPolicyClient,
    AsyncAdminClient,
]
NO_TIMES: list[Any] = [math.inf, -math.inf, math.nan, 0, -1.0, 1e308, 10**400, "5", True]


@pytest.mark.parametrize("timeout", NO_TIMES)
def test_a_time_that_is_none_is_refused_with_its_name(timeout: Any) -> None:
    for kind in CLIENTS:
        with pytest.raises(InvalidArgument, match=r"^timeout: is ") as caught:
            kind("127.0.0.1:1", timeout=timeout)
        assert [v.field for v in caught.value.field_violations] == ["timeout"]
    client = RewardClient("127.0.0.1:1")
    calls: list[Callable[[], Any]] = [
        lambda: client.score("m", ITEMS, timeout=timeout),
        lambda: client.rank("m", "p", ["a"], timeout=timeout),
        lambda: next(client.score_stream("m", ITEMS, timeout=timeout)),
        lambda: client.list_models(timeout=timeout),
        lambda: client.health(timeout=timeout),
        lambda: PolicyClient("127.0.0.1:1").generate(
            [GenerateItem("p")], max_tokens=1, timeout=timeout
        ),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match=r"^timeout: is .* or None for no limit$"):
            call()


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (Retry, "attempts", [0, 1.5, math.inf, True, "3"]),
        (Retry, "overload_attempts", [0, math.nan]),
        (Retry, "initial", [0.0, math.inf, math.nan]),
        (Retry, "multiplier", [0.5, 1e6, math.inf]),
        (Retry, "maximum", [0.01, math.inf]),
        (Retry, "hedge_after", [0, -1.0, math.inf]),
        (Limits, "max_bytes", [0, 1.5, 2**31]),
        (Limits, "concurrency", [0, math.inf]),
        (Limits, "max_reply_bytes", [0, -1, None]),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: Any, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidArgument, match=f"^{name}: is .*, it must be a "):
            kind(**{name: value})


@pytest.mark.parametrize("odd", [0, -1, 1.5, math.inf, math.nan, "2", True])
def test_numbers_of_a_call_are_refused_with_their_name(odd: Any) -> None:
    rewards, policy = RewardClient("127.0.0.1:1"), PolicyClient("127.0.0.1:1")
    item = GenerateItem("p")
    calls: dict[str, Callable[[], Any]] = {
        "in_flight": lambda: next(rewards.score_stream("m", ITEMS, in_flight=odd)),
        "top_n": lambda: rewards.rank("m", "p", ["a"], top_n=odd),
        "options.max_tokens": lambda: policy.generate([item], max_tokens=odd),
        "items[0].n": lambda: policy.generate([GenerateItem("p", n=odd)], max_tokens=1),
        "version": lambda: policy.update_weights(odd, [b"1234"]),
        "chunk_bytes": lambda: policy.update_weights(1, [b"1234"], chunk_bytes=odd),
    }
    for name, call in calls.items():
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert [v.field for v in caught.value.field_violations] == [name]


@pytest.mark.parametrize("token", ["sécret", "secret\n", "se cret", "\x00secret", b"secret"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: Any) -> None:
    for kind in CLIENTS:
        with pytest.raises(InvalidArgument, match=r"^token: must be visible ASCII") as caught:
            kind("127.0.0.1:1", token=token)
        assert "cret" not in str(caught.value)


def test_a_client_is_pickled_as_its_settings_used_or_not() -> None:
    limits = Limits(max_responses=1)
    with FakeRewardServer(token="t") as server:
        client = RewardClient(server.target, token="t", timeout=20, limits=limits)
        for _ in ("unused", "used"):
            for other in (pickle.loads(pickle.dumps(client)), copy.deepcopy(client)):
                before = len(server.calls)
                assert other.score("fake", ITEMS * 2).scores == [[3.0]] * 2
                assert len(server.calls) == before + 2, "the limits are the same"
                assert all(0 < (c.time_remaining or 0) <= 21 for c in server.calls)
                other.close()
            assert client.score("fake", ITEMS).scores == [[3.0]]
        client.close()
    with FakePolicyServer() as sampler:
        policy = PolicyClient(sampler.target)
        policy.get_policy()
        assert pickle.loads(pickle.dumps(policy)).get_policy().model == "fake"


def test_a_pickled_client_takes_no_random_state_along() -> None:
    """Workers that wait alike would come back together."""
    assert len(pickle.dumps(Clock())) < 500


async def test_an_async_client_is_pickled_in_use() -> None:
    async with FakeRewardServer() as server, AsyncRewardClient(server.target) as client:
        assert (await client.score("fake", ITEMS)).scores == [[3.0]]
        async with pickle.loads(pickle.dumps(client)) as other:
            assert (await other.score("fake", ITEMS)).scores == [[3.0]]


def test_an_async_client_goes_on_in_another_event_loop() -> None:
    with FakeRewardServer() as server:
        client = AsyncRewardClient(server.target)

        async def use() -> list[Any]:
            calls = [client.score("fake", ITEMS) for _ in range(5)]
            streamed = [r.values async for r in client.score_stream("fake", ITEMS)]
            return [r.scores for r in await asyncio.gather(*calls)] + [streamed]

        for _ in range(3):
            assert asyncio.run(use()) == [[[3.0]]] * 6
        asyncio.run(client.close())


async def test_an_async_client_in_two_living_loops_says_so() -> None:
    async with FakeRewardServer() as server, AsyncRewardClient(server.target) as client:
        await client.score("fake", ITEMS)
        caught: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(client.score("fake", ITEMS))
            except RuntimeError as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert ["belongs to another event loop" in str(error) for error in caught] == [True]
        assert (await client.score("fake", ITEMS)).scores == [[3.0]]


@pytest.mark.parametrize("target", ["{}", "dns:///{}", "ipv4:{}", ["{}", "{}"]])
def test_loopback_goes_past_the_environments_proxy(
    monkeypatch: pytest.MonkeyPatch, target: str | list[str]
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeRewardServer() as server:
        each = [target] if isinstance(target, str) else target
        given = [t.format(server.target) for t in each]
        with RewardClient(given[0] if len(given) == 1 else given, timeout=5) as client:
            assert client.score("fake", ITEMS).scores == [[3.0]]


def test_an_error_names_the_proxy_and_not_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("http_proxy", f"http://user:secret@{proxy}")
        monkeypatch.delenv("https_proxy", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with RewardClient("rewards.invalid:50051", retry=Retry(attempts=1)) as client:
            with pytest.raises(Unavailable, match=rf"http_proxy is set to {proxy}; ") as caught:
                client.list_models()
        assert "secret" not in str(caught.value)
        monkeypatch.setenv("no_proxy", ".invalid")
        with RewardClient("rewards.invalid:50051", retry=Retry(attempts=1)) as client:
            with pytest.raises(Unavailable) as caught:
                client.list_models()
        assert "proxy" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("localhost:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv6:[::1]:1", True),
        ("unix:/run/guerdon.sock", True),
        (["127.0.0.1:1", "10.0.0.1:1"], False),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("127.0.0.1.example.org:1", False),
        ("rewards:50051", False),
    ],
)
def test_what_stays_on_this_machine(target: Any, loopback: bool) -> None:
    assert Target(target).loopback is loopback


def test_a_missing_certificate_file_is_named_when_the_client_is_made() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        RewardClient("127.0.0.1:1", tls=TLS(ca="nowhere.pem"))
