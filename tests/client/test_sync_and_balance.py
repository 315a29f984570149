"""The synchronous clients, and several endpoints."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from guerdon.client import TLS, AdminClient, AsyncRewardClient, Item, NotFound, Retry, RewardClient
from guerdon.client._channel import Target
from guerdon.client.testing import FakeRewardServer

ITEMS = [Item("What is rain?", ["Water that falls.", "Mud."])]


def test_the_example_of_the_readme() -> None:
    with FakeRewardServer(models=["helpful"]) as server, RewardClient(server.target) as rewards:
        assert rewards.score("helpful", ITEMS).scores == [[17.0, 4.0]]
        assert rewards.score_one("helpful", "q", ["a"]).values == [1.0]
        assert [c.index for c in rewards.rank("helpful", "q", ["a", "abc"]).ranking] == [1, 0]
        assert rewards.health()
        assert rewards.get_model("helpful").name == "helpful"
        assert len(rewards.list_models()) == 1
        with AdminClient(server.target) as admin:
            admin.set_alias("best", "helpful")
            assert rewards.get_model("best").aliases == ("best",)
        with pytest.raises(NotFound):
            rewards.score("nobody", ITEMS)
    with pytest.raises(RuntimeError, match="closed"):
        rewards.score("helpful", ITEMS)


async def test_it_works_inside_a_running_loop() -> None:
    """As in Jupyter, whose cells run on a loop."""
    with FakeRewardServer() as server, RewardClient(server.target) as rewards:
        assert asyncio.get_running_loop().is_running()
        assert rewards.score("fake", ITEMS).scores == [[17.0, 4.0]]


def test_many_threads_share_one_client() -> None:
    with FakeRewardServer() as server, RewardClient(server.target) as rewards:
        found: list[Any] = []

        def work(n: int) -> None:
            found.append((n, rewards.score("fake", [Item("p", ["r" * n])]).scores[0][0]))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 17)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [(n, float(n)) for n in range(1, 17)]


def test_a_stream_reads_its_items_in_the_callers_thread() -> None:
    threads: set[int] = set()

    with FakeRewardServer() as server, RewardClient(server.target) as rewards:

        def items() -> Iterator[Item]:
            for n in range(1, 101):
                threads.add(threading.get_ident())
                # Even this client may be used while its own stream runs.
                assert rewards.score("fake", [Item("p", ["r"])]).scores == [[1.0]]
                yield Item("p", ["r" * n])

        results = list(rewards.score_stream("fake", items(), in_flight=8))
        assert sorted((r.index, r.values) for r in results) == [(n, [n + 1.0]) for n in range(100)]
        assert threads == {threading.get_ident()}
        for result in rewards.score_stream("fake", items()):
            assert result.error is None
            break
        with pytest.raises(NotFound):
            next(rewards.score_stream("nobody", iter(ITEMS))).values  # noqa: B018


@pytest.mark.parametrize("names", [False, True])
async def test_calls_go_round_and_a_dead_server_is_passed_over(names: bool) -> None:
    async with FakeRewardServer() as one, FakeRewardServer() as two, FakeRewardServer() as three:
        servers = (one, two, three)
        targets = [
            s.target.replace("127.0.0.1", "localhost") if names else s.target for s in servers
        ]
        async with AsyncRewardClient(targets, retry=Retry(initial=0.01)) as client:
            for _ in range(60):
                await client.score("fake", ITEMS)
            assert all(len(s.calls) > 5 for s in servers), [len(s.calls) for s in servers]
            await two.stop()
            before = len(two.calls)
            for _ in range(40):
                await client.score("fake", ITEMS)
            assert len(two.calls) == before
            assert sum(len(s.calls) for s in servers) == 100


async def test_a_server_that_says_it_is_not_serving_is_passed_over() -> None:
    async with FakeRewardServer() as one, FakeRewardServer() as two:
        await one.set_serving(False)
        async with AsyncRewardClient([one.target, two.target]) as client:
            for _ in range(20):
                await client.score("fake", ITEMS)
            assert (len(one.calls), len(two.calls)) == (0, 20)
            assert await client.health()


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("rewards:50051", "dns:///rewards:50051"),
        ("dns:///rewards:50051", "dns:///rewards:50051"),
        ("unix:///run/guerdon", "unix:///run/guerdon"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[fe80::2]:2"], "ipv6:[::1]:1,[fe80::2]:2"),
        (["10.0.0.1:1", "[::1]:2"], "ipv6:[::ffff:10.0.0.1]:1,[::1]:2"),
        (["localhost:1", "127.0.0.1:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
    ],
)
async def test_targets(given: Any, resolved: str) -> None:
    assert await Target(given).resolve() == resolved


@pytest.mark.parametrize(
    "given", ["", [], "grpc://x:1", ["a:1", "http://b:2"], ["a:1", "b"], ["a:1", "dns:///b:2"]]
)
def test_targets_that_are_none(given: Any) -> None:
    with pytest.raises(ValueError, match="target"):
        RewardClient(given)


def test_a_list_with_tls_needs_a_name_and_a_plain_token_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match="server_name"):
        RewardClient(["a:1", "b:2"], tls=TLS())
    RewardClient("127.0.0.1:1", token="t")
    assert not caplog.records
    RewardClient("rewards:1", token="t")
    assert "clear text" in caplog.text
