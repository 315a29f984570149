"""A real Prometheus scrapes the real server under load: every panel has data."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from tests.judge.conftest import write_settings
from tests.judge.endpoint import replies, scripted
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import (
    AdminClient,
    AsyncRewardClient,
    GuerdonError,
    Item,
    Retry,
    RewardClient,
)

from .support import (
    REWARD,
    Prometheus,
    as_grafana_asks,
    check_panel,
    dashboard,
    need_program,
    panel_queries,
    rules,
    running_prometheus,
)

WORDS = "The capital of France is Paris. "
MANY = Item(WORDS * 3, [WORDS * (1 + n % 8) for n in range(48)])
"""Takes the engine a while."""
QUEUE_TOKENS = 15_000
NEEDS_A_DAY = {"model:guerdon_score:ks_day"}
"""Compared with what was there a day before."""

HAPPENED = (
    'guerdon_shed_total{class="batch"} > 0',
    'guerdon_dropped_total{reason="expired"} > 0',
    'guerdon_dropped_total{reason="cancelled"} > 0',
    "guerdon_truncations_total > 0",
    "guerdon_padding_tokens_total > 0",
    "guerdon_reused_prompt_tokens_total > 0",
    'guerdon_request_seconds_count{class="online"} > 5',
    'guerdon_request_seconds_count{class="batch"} > 5',
    'count by (model) (guerdon_score_count{model="packed"}) > 1',
    "guerdon_judge_requests_total > 1",
    "guerdon_judge_cached_total > 1",
)
"""What the load is for. Without one of them a panel could be right and empty."""


async def load(address: str, stop: threading.Event) -> None:
    """Calls of every sort, more than fit, until `stop`."""
    few = Item(WORDS * 3, [WORDS * n for n in (1, 2, 4)])
    long = Item(WORDS * 60, [WORDS])
    numbers = itertools.count()  # a verdict on each is asked for; that on WORDS is known
    async with AsyncRewardClient(address, retry=Retry(attempts=1), timeout=10) as client:

        async def online(model: str) -> None:
            await client.score(model, [few])
            await asyncio.sleep(0.02)

        sorts: list[Callable[[], Awaitable[object]]] = [
            lambda: online("packed"),
            lambda: online("padded"),
            lambda: client.score("packed", [long], truncation="prompt_left"),
            lambda: client.score("padded", [MANY], timeout=0.04),
            lambda: client.rank("packed", few.prompt, few.responses),
            lambda: client.score("judge", [Item(WORDS, [WORDS, f"{next(numbers)}"])]),
            *[lambda: client.score("padded", [MANY], priority="batch")] * 8,
            *[lambda: client.score("packed", [MANY], priority="batch")] * 2,
        ]

        async def repeat(call: Callable[[], Awaitable[object]]) -> None:
            while not stop.is_set():
                with contextlib.suppress(GuerdonError):
                    await call()
                await asyncio.sleep(0.01)

        await asyncio.gather(*map(repeat, sorts))


@contextlib.contextmanager
def under_load(address: str) -> Iterator[None]:
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(load(address, stop))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert not failures, failures


async def expire(address: str) -> None:
    """Calls that are let in and then expire: until a first batch was measured, the server
    can't foresee that they will."""
    few = Item(WORDS, [WORDS])
    async with AsyncRewardClient(address, retry=Retry(attempts=1)) as client:
        await client.health()  # connected
        first = asyncio.create_task(client.score("padded", [MANY]))
        await asyncio.sleep(0.004)
        # 10 ms to 4 s: some of them end between their arrival and the first one's end, however
        # slow the machine is.
        hasty = [client.score("padded", [few], timeout=0.01 * 1.3**n) for n in range(24)]
        await asyncio.gather(*hasty, return_exceptions=True)
        await first


async def cancel(server: RunningServer) -> None:
    """Calls that are let in and then cancelled: beside the load they would mostly be shed."""
    async with AsyncRewardClient(server.address) as client:
        for tries in range(100):
            waiting = [asyncio.create_task(client.score("padded", [MANY])) for _ in range(3)]
            await asyncio.sleep(0.03 * (1 + tries % 10))
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            metrics = await asyncio.to_thread(lambda: httpx.get(f"{server.url}/metrics").text)
            if re.search(r'guerdon_dropped_total{[^}]*"cancelled"[^}]*} [1-9]', metrics):
                return
    pytest.fail("no call was cancelled while it waited")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    need_program("prometheus")
    folder = tmp_path_factory.mktemp("models")
    first = tiny_checkpoint(folder / "first", "llama", seed=0)
    second = tiny_checkpoint(folder / "second", "llama", seed=1)
    padded = tiny_checkpoint(folder / "padded", "deberta-v2")
    models = {"packed": first, "padded": padded}
    limits = {"max_queue_tokens": QUEUE_TOKENS, "max_batch_tokens": 2048}
    with scripted(replies("It is brief.\nScore: 7")) as endpoint:
        models["judge"] = write_settings(folder / "judge.toml", endpoint.url)
        yield from _serving(models, second, limits)


def _serving(
    models: dict[str, Path], second: Path, limits: dict[str, int]
) -> Iterator[RunningServer]:
    with running_server(models, **limits) as running:
        asyncio.run(expire(running.address))
        asyncio.run(cancel(running))
        with RewardClient(running.address) as client:
            client.score("packed", [Item(WORDS, [WORDS])] * 4)
        with AdminClient(running.admin_address) as admin:
            admin.load_model("packed", str(second), promote=True)
        yield running


@pytest.fixture(scope="module")
def prometheus(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """It has scraped a server under load, and the load goes on."""
    folder = tmp_path_factory.mktemp("prometheus")
    target = server.url.removeprefix("http://")
    with running_prometheus(folder, target) as running:
        running.wait_for("guerdon_engine_up == 1")
        with (
            RewardClient(server.address) as client,
            under_load(server.address),
        ):
            old = next(m for m in client.list_models() if m.name == "packed" and not m.current)
            for _ in range(5):  # the former revision serves those who pinned it
                with contextlib.suppress(GuerdonError):
                    client.score(old.pinned, [Item(WORDS, [WORDS * 2])])
            for expression in HAPPENED:
                running.wait_for(expression)
            running.wait_for_scrapes(4)  # rates need several
            yield running


@pytest.mark.slow
@pytest.mark.parametrize("name", panel_queries(REWARD))
def test_the_panel_has_data(name: str, prometheus: Prometheus) -> None:
    check_panel(prometheus, panel_queries(REWARD)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instance", "model"])
def test_the_variable_has_values(name: str, prometheus: Prometheus) -> None:
    (variable,) = (v for v in dashboard(REWARD)["templating"]["list"] if v["name"] == name)
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
    assert found is not None
    matched = {"match[]": as_grafana_asks(found[1])}
    values = prometheus.get(f"label/{found[2]}/values", **matched)
    if name == "model":
        assert values == ["judge", "packed", "padded"]
    else:
        assert len(values) == 1


@pytest.mark.slow
def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    for file in ("rules.yml", "alerts.yml"):
        for rule in rules(file):
            name = str(rule.get("record") or rule["alert"])
            assert found[name]["health"] == "ok", found[name]
            if "record" in rule and name not in NEEDS_A_DAY:
                assert prometheus.query(name), f"{name} has no data"


@pytest.mark.slow
def test_figures_are_those_of_the_server(prometheus: Prometheus) -> None:
    """The modes, the limit, and no engine that is busier than time allows."""
    packed = {
        series["metric"]["model"]: float(series["value"][1])
        for series in prometheus.query("min by (model) (guerdon_model_packed)")
    }
    assert packed == {"packed": 1, "padded": 0}
    (limit,) = prometheus.query("guerdon_queue_limit_tokens")
    assert float(limit["value"][1]) == QUEUE_TOKENS
    (busy,) = prometheus.query("rate(guerdon_engine_busy_seconds_total[15s])")
    assert 0 < float(busy["value"][1]) < 1.1
    (waste,) = prometheus.query('model:guerdon_padding:ratio_rate5m{model="padded"}')
    assert 0 < float(waste["value"][1]) < 1
    (none,) = prometheus.query('model:guerdon_padding:ratio_rate5m{model="packed"}')
    assert float(none["value"][1]) == 0


@pytest.mark.slow
def test_no_failure_was_seen(prometheus: Prometheus, server: RunningServer) -> None:
    """Overload is no fault of the server's: nothing ended with INTERNAL."""
    assert not prometheus.query('guerdon_requests_total{code=~"INTERNAL|UNKNOWN"} > 0')
    assert not prometheus.query("guerdon_nonfinite_scores_total > 0")
    assert httpx.get(f"{server.url}/healthz").status_code == 200
