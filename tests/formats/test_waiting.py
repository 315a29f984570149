"""Trainers' requests wait through overload and restarts: their clients would give up, or invent."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.service.conftest import start_server
from tests.service.fake import FakeLoader, expected_score, revision_of, words
from tests.support.in_process import until
from tests.support.server import ROOT, serve_command

from guerdon.serving.lifecycle import Phase

from .conftest import ANSWER, PROMPT, QUESTION
from .test_formats import close

HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
SLIME = {"prompt": "a b", "response": "c"}


async def test_overload_is_waited_for_by_trainers_alone() -> None:
    """Of many requests for a small queue, applications' are shed, and trainers' wait."""
    async with start_server(queue={"max_queued_tokens": 40}) as served:
        served.behaviour.gate.clear()
        body = {"prompt": "a b c d", "response": "e f"}
        waiting = [
            asyncio.ensure_future(served.http.post("/rm", json=body, timeout=120))
            for _ in range(40)
        ]
        await served.until_metric('guerdon_shed_total{class="batch",model="m"}', bool)
        asked = [
            asyncio.ensure_future(
                served.http.post("/predict", json={"inputs": ["a b c d", "e f"]}, timeout=120)
            )
            for _ in range(40)
        ]
        await until(lambda: sum(each.done() for each in asked) >= 20)
        assert not any(each.done() for each in waiting)
        served.behaviour.gate.set()
        refused = [r for r in await asyncio.gather(*asked) if r.status_code != 200]
        assert {(r.status_code, r.json()["error_type"]) for r in refused} == {(429, "Overloaded")}
        answers = await asyncio.gather(*waiting)
    expected = expected_score(revision_of("first"), words("a b c d") + words("e f"))
    assert [answer.json() for answer in answers] == [expected] * 40


async def test_a_request_waits_until_models_are_loaded() -> None:
    loader = FakeLoader()
    loader.behaviour.gate.set()
    async with start_server(loader) as served:
        served.server.lifecycle.phase = Phase.STARTING
        waiting = asyncio.ensure_future(served.http.post("/rm", json=SLIME, timeout=120))
        refused = await served.http.post("/predict", json={"inputs": "a"})
        assert refused.status_code == 503
        served.server.lifecycle.start_serving()
        answer = await waiting
    expected = expected_score(revision_of("first"), words("a b") + words("c"))
    assert (answer.status_code, answer.json()) == (200, expected)


async def test_a_server_that_leaves_lets_nobody_wait() -> None:
    async with start_server() as served:
        served.server.lifecycle.phase = Phase.STARTING
        waiting = asyncio.ensure_future(served.http.post("/rm", json=SLIME, timeout=120))
        await served.http.get("/healthz")
        served.server.lifecycle.start_draining()
        assert (await waiting).status_code == 503


async def test_no_more_wait_than_there_is_room_for() -> None:
    """Of 20 that would wait, 8: half of the connections, a caller alone four fifths of them."""
    async with start_server(http_connections=20) as served:
        served.server.lifecycle.phase = Phase.STARTING
        asked = [
            asyncio.ensure_future(served.http.post("/rm", json=SLIME, timeout=120))
            for _ in range(14)
        ]
        await until(lambda: sum(each.done() for each in asked) >= 6)
        served.server.lifecycle.start_serving()
        codes = [answer.status_code for answer in await asyncio.gather(*asked)]
    assert (codes.count(200), codes.count(503)) == (8, 6)


async def test_what_ends_engines_is_not_asked_for_ever() -> None:
    async with start_server() as served:
        served.behaviour.loses_engine = True
        answer = await served.http.post("/rm", json=SLIME, timeout=120)
        assert (answer.status_code, served.behaviour.batches) == (503, 2)


async def test_a_caller_of_bulk_work_alone(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[callers.a]\ntoken = "t"\nroles = ["score"]\nclasses = ["batch"]\n')
    async with start_server(tokens=tokens) as served:
        answer = await served.http.post("/predict", json={"inputs": "a"}, auth=("", "t"))
    assert answer.status_code == 200


@contextmanager
def handed_over(checkpoint: Path, listener: socket.socket, log: Path) -> Iterator[Any]:
    """A server to which a supervisor, as systemd, hands its listening socket."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LISTEN_FDS": "1"}
    number = listener.fileno()
    command = [sys.executable, "-c", HAND_OVER, str(number)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command + serve_command({"tiny": checkpoint}, dtype="float32"),
            pass_fds=(number,),
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_reward_is_lost_by_kill_9(checkpoint: Path, tmp_path: Path) -> None:
    """OpenRLHF's and slime's clients, as they try: what fails is asked again, and answered."""
    log = tmp_path / "server.log"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(timeout=180) as http:

            async def openrlhf() -> Any:
                """Five tries, a second apart, then None: what its client does."""
                body = {"query": [PROMPT + ANSWER], "prompts": [PROMPT], "labels": [None]}
                for _ in range(5):
                    try:
                        answer = await http.post(f"{url}/get_reward", json=body)
                        if answer.status_code == 200:
                            return answer.json()["rewards"][0]
                    except httpx.HTTPError:
                        pass
                    await asyncio.sleep(1)
                return None

            async def slime() -> Any:
                """Ten tries, 120 s each."""
                for _ in range(10):
                    try:
                        answer = await http.post(
                            f"{url}/rm", json={"prompt": QUESTION, "response": ANSWER}, timeout=120
                        )
                        answer.raise_for_status()
                        return answer.json()
                    except httpx.HTTPError:
                        await asyncio.sleep(1)
                return None

            with handed_over(checkpoint, listener, log):
                early = await asyncio.gather(*(ask() for ask in (openrlhf, slime) * 2))
                items = [{"prompt": QUESTION, "responses": [ANSWER]}]
                body = {"model": "tiny", "items": items}
                reply = (await http.post(f"{url}/v1/score", json=body)).json()
                score = reply["items"][0]["scores"][0]["score"]
                assert early == [close(score)] * 4
                under_way = [asyncio.ensure_future(ask()) for ask in (openrlhf, slime) * 8]
            late = [asyncio.ensure_future(ask()) for ask in (openrlhf, slime) * 8]
            with handed_over(checkpoint, listener, log):
                rewards = await asyncio.gather(*under_way, *late)
        assert rewards == [close(score)] * 32, log.read_text()
