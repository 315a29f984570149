"""A real Prometheus scrapes a gateway at work: every panel has data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from tests.support.formula_server import Server
from tests.support.gateway import gateway_process
from tests.support.sampler import formula_sampler
from tests.support.server import RunningServer

from .support import (
    GATEWAY,
    Prometheus,
    check_panel,
    check_rules,
    need_program,
    panel_queries,
    running_prometheus,
)

CALLER_TOKENS = 1_000_000
"""So many, in a minute, that calls are refused only where they ask for more at once."""


def work(gateway: RunningServer, rewards: Server, stop: threading.Event) -> None:
    """Calls that are answered, unranked, refused and passed on, until `stop`."""
    question = [{"role": "user", "content": "What is rain?"}]
    bodies: list[dict[str, object]] = [
        {},  # gets the failure
        {},
        {"guerdon": {"strategy": "threshold", "threshold": 0.0}},
        {"max_tokens": CALLER_TOKENS},  # four times what a caller may spend
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ]
    with httpx.Client(base_url=gateway.url, timeout=30) as http:
        while not stop.is_set():
            for body in bodies:
                asked = {"model": "policy:best-of-4", "messages": question, "max_tokens": 20}
                http.post("/v1/chat/completions", json={**asked, **body})
            rewards.fail(grpc.StatusCode.UNAUTHENTICATED, times=1, method="Score")
            time.sleep(0.02)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    need_program("prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    stop = threading.Event()
    with (
        Server() as rewards,
        formula_sampler() as sampler,
        gateway_process(
            sampler=sampler.address,
            reward=[f"{rewards.target}/rm"],
            pass_to=f"{sampler.url}/v1",
            caller_tokens=CALLER_TOKENS,
        ) as gateway,
        running_prometheus(
            folder, gateway.url.removeprefix("http://"), "guerdon-gateway"
        ) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        working = pool.submit(work, gateway, rewards, stop)
        try:
            for expression in (
                'guerdon_gateway_answers_total{ranked="yes"} > 0',
                'guerdon_gateway_answers_total{ranked="passed"} > 0',
                "guerdon_gateway_unranked_refused_total > 0",
                "guerdon_gateway_spending_refused_total > 0",
            ):
                running.wait_for(expression)
            running.wait_for_scrapes(4)  # rates need several
            yield running
        finally:
            stop.set()
            working.result(60)


@pytest.mark.slow
@pytest.mark.parametrize("name", panel_queries(GATEWAY))
def test_the_panel_has_data(name: str, prometheus: Prometheus) -> None:
    check_panel(prometheus, panel_queries(GATEWAY)[name])


@pytest.mark.slow
def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    check_rules(prometheus, "gateway-alerts.yml")
