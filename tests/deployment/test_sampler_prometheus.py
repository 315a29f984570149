"""A real Prometheus scrapes a sampler at work: every panel has data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tests.support.sampler import formula_sampler
from tests.support.sampler_service import begin, item, request, update
from tests.support.server import RunningServer

from guerdon.v1 import policy_pb2_grpc

from .support import (
    SAMPLER,
    Prometheus,
    check_panel,
    check_rules,
    need_program,
    panel_queries,
    running_prometheus,
)

LIMIT = 24


def work(sampler: RunningServer, stop: threading.Event) -> None:
    """Calls of every sort, more than fit, and weights that change, until `stop`."""
    with grpc.insecure_channel(sampler.address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)

        def generate(timeout: float) -> None:
            while not stop.is_set():
                try:
                    asked = request(item(1, 2, n=8), max_tokens=30, ignore_eos=True)
                    list(stub.Generate(asked, timeout=timeout))
                except grpc.RpcError:
                    time.sleep(0.02)

        def publish() -> None:
            version = 0
            while not stop.is_set():
                version += 1
                canary = {"token_ids": [1, 2, 3], "logprobs": [-1, -2]}
                stub.UpdateWeights(update(version, canaries=[canary]), timeout=10)
                with pytest.raises(grpc.RpcError):
                    stub.UpdateWeights(iter([begin(version + 1)]), timeout=10)
                stop.wait(0.3)

        with ThreadPoolExecutor(6) as pool:
            done = [pool.submit(generate, 10) for _ in range(4)]
            done += [pool.submit(generate, 0.1), pool.submit(publish)]
        for call in done:
            call.result()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    need_program("prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    stop = threading.Event()
    with (
        formula_sampler(seconds_per_token=0.01, max_in_flight=LIMIT) as sampler,
        running_prometheus(
            folder, sampler.url.removeprefix("http://"), "guerdon-sampler"
        ) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        working = pool.submit(work, sampler, stop)
        try:
            for expression in (
                "guerdon_sampler_engine_up == 1",
                "guerdon_sampler_shed_total > 0",
                'guerdon_sampler_dropped_total{reason="expired"} > 0',
                "guerdon_sampler_mixed_completions_total > 0",
                'guerdon_sampler_updates_total{outcome="invalid"} > 0',
            ):
                running.wait_for(expression)
            running.wait_for_scrapes(4)  # rates need several
            yield running
        finally:
            stop.set()
            working.result(30)


@pytest.mark.slow
@pytest.mark.parametrize("name", panel_queries(SAMPLER))
def test_the_panel_has_data(name: str, prometheus: Prometheus) -> None:
    check_panel(prometheus, panel_queries(SAMPLER)[name])


@pytest.mark.slow
def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    check_rules(prometheus, "sampler-alerts.yml")


@pytest.mark.slow
def test_figures_are_those_of_the_sampler(prometheus: Prometheus) -> None:
    ((_, limit),) = (series["value"] for series in prometheus.query("guerdon_sampler_limit"))
    assert float(limit) == LIMIT
    busy = "max_over_time((guerdon_sampler_running + guerdon_sampler_waiting)[1m:1s])"
    ((_, most),) = (series["value"] for series in prometheus.query(busy))
    assert 0 < float(most) <= LIMIT
    assert not prometheus.query('guerdon_sampler_requests_total{code=~"INTERNAL|UNKNOWN"} > 0')
