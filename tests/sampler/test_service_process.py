"""The command in a process of its own, with an engine that is a formula."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.support.ports import free_port
from tests.support.sampler import formula_sampler, sampler_command
from tests.support.sampler_service import item, request, update
from tests.support.server import RunningServer

from guerdon.v1 import policy_pb2, policy_pb2_grpc

HELD = 7
HOLDING = {"FORMULA_HELD_SEED": str(HELD)}
"""Completions of this seed wait for SIGUSR2."""


def draw(address: str, *items: Any, **options: Any) -> list[policy_pb2.GenerateResponse]:
    with grpc.insecure_channel(address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        return list(stub.Generate(request(*items, **options), timeout=60))


def publish(sampler: RunningServer, version: int) -> policy_pb2.UpdateWeightsResponse:
    with grpc.insecure_channel(sampler.address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        return stub.UpdateWeights(update(version), timeout=30)


def drawing(sampler: RunningServer, calls: int) -> list[Future[Any]]:
    """Calls of four completions each, all of them in flight and held."""
    pool = ThreadPoolExecutor(calls)
    held = [item(k + 1, n=4, seed=HELD) for k in range(calls)]
    futures = [
        pool.submit(draw, sampler.address, each, max_tokens=100, ignore_eos=True) for each in held
    ]
    pool.shutdown(wait=False)
    while "guerdon_sampler_running 16.0" not in httpx.get(f"{sampler.url}/metrics").text:
        assert not any(call.done() for call in futures)
        time.sleep(0.01)
    return futures


@pytest.mark.slow
def test_a_clean_end() -> None:
    with formula_sampler() as sampler:
        assert len(draw(sampler.address, item(n=3))) == 3
        assert publish(sampler, 2).version == 2
        assert sampler.stop() == 0
        assert "ready: formula; gRPC on 127.0.0.1:" in sampler.log()
        assert "stopped" in sampler.log()
        assert "Traceback" not in sampler.log()


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted() -> None:
    with formula_sampler(environment=HOLDING) as sampler:
        accepted = drawing(sampler, 4)
        sampler.process.send_signal(signal.SIGTERM)
        while "SIGTERM: leaving, 4 calls being served" not in sampler.log():
            time.sleep(0.01)
        while not all(call.done() for call in accepted):
            time.sleep(0.01)
            sampler.process.send_signal(signal.SIGUSR2)
        for call in accepted:
            assert [len(reply.token_ids) for reply in call.result(timeout=60)] == [100] * 4
        assert sampler.process.wait(30) == 0


@pytest.mark.slow
def test_a_dead_engine_ends_the_process_with_its_reason() -> None:
    with formula_sampler(environment=HOLDING) as sampler:
        accepted = drawing(sampler, 4)
        sampler.process.send_signal(signal.SIGUSR1)
        assert sampler.process.wait(30) == 1
        for call in accepted:
            error = call.exception(timeout=30)
            assert isinstance(error, grpc.RpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        last = sampler.log().strip().splitlines()[-1]
        assert last == "guerdon serve sampler: the engine died: its process was killed"


@pytest.mark.slow
def test_a_sampler_that_was_killed_comes_back_with_version_0() -> None:
    port = free_port()
    with formula_sampler(port=port) as sampler:
        publish(sampler, 3)
        assert len(draw(sampler.address, item(), min_version=3)) == 1
        sampler.kill()
        with formula_sampler(port=port) as again:
            with pytest.raises(grpc.RpcError) as caught:
                draw(again.address, item(), min_version=3)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            publish(again, 1)
            assert len(draw(again.address, item(), min_version=1)) == 1


@pytest.mark.slow
def test_an_open_port_is_warned_of(tmp_path: Path) -> None:
    admin = tmp_path / "admin"
    admin.write_text("for-weights")
    with formula_sampler(host="0.0.0.0", admin_token_file=admin) as sampler:
        said = "0.0.0.0 can be reached from other machines without TLS and a bearer token"
        assert said in sampler.log()
        assert "for-weights" not in sampler.log()


@pytest.mark.slow
def test_refusals_of_the_command_are_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guerdon.serving", "sampler"]
    for arguments, said in (
        (command, "no policy to serve"),
        ([*command, "--model", "x", "--dtype", "int3"], "dtype is 'int3'"),
        ([*command, "--model", "x", "--max-in-flight", "0"], "max_in_flight is 0"),
        ([*command, "--model", "x", "--shared-dir", str(tmp_path / "no")], "there is no folder"),
        ([*command, "--model", "x", "--host", "0.0.0.0"], "could replace the weights"),
        (sampler_command(tmp_path / "none"), "there is no folder"),
    ):
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("guerdon serve sampler: ")
        assert said in last
        assert "Traceback" not in result.stderr


def test_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, guerdon.sampler.cli, guerdon.sampler.config\n"
        "heavy = {'torch', 'transformers', 'vllm', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
