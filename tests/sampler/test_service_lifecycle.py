"""Health, reflection, start, drain, an engine that dies, tokens."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.support.formula_engine import FormulaEngine, WordTokenizer
from tests.support.in_process import NOT_SERVING, SERVING, reply_of, until
from tests.support.sampler_service import Harness, begin, item, request, start_sampler, update

from guerdon.sampler.app import SamplerServer
from guerdon.sampler.config import load_config
from guerdon.serving.errors import CheckpointRefused, EngineDied
from guerdon.settings import SettingsError
from guerdon.v1 import policy_pb2, policy_pb2_grpc

NAMES = ("", "guerdon.v1.PolicyService")
POLICY = policy_pb2.GetPolicyRequest()


@pytest.fixture
async def served() -> Any:
    async with start_sampler() as harness:
        yield harness


async def test_health_and_reflection(served: Harness) -> None:
    for name in NAMES:
        assert await served.health(name) == SERVING
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    reply = await stub.ServerReflectionInfo(iter([asked]), timeout=10).read()
    names = {service.name for service in reply.list_services_response.service}
    assert {NAMES[1], "grpc.health.v1.Health"} <= names


async def test_draining_finishes_what_was_accepted(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    drawing = [asyncio.ensure_future(served.generate(item(n=3))) for _ in range(4)]
    forever = asyncio.Event()

    async def half() -> Any:
        yield begin(1)
        await forever.wait()

    updating = asyncio.ensure_future(reply_of(served.policy.UpdateWeights(half())))
    await until(lambda: served.engine.running == 12)
    await until(lambda: served.engine.behaviour.staged == 1)
    served.server.lifecycle.start_draining()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await updating
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await until(lambda: served.engine.behaviour.staged == 0)
    for name in NAMES:
        assert await served.health(name) == NOT_SERVING
    for call in (served.generate(item()), served.publish(1), served.policy.GetPolicy(POLICY)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    served.engine.behaviour.gate.set()
    assert [len(replies) for replies in await asyncio.gather(*drawing)] == [3] * 4
    await asyncio.wait_for(served.finished, 10)
    assert served.engine.stopped


async def test_a_sampler_that_leaves_says_so_before_it_refuses_calls() -> None:
    async with start_sampler(lame_duck=1e6, metrics_port=0) as served:
        served.server.lifecycle.start_leaving()
        plain = f"http://127.0.0.1:{served.ports.metrics_port}"
        async with httpx.AsyncClient() as probe:
            assert (await probe.get(f"{plain}/readyz")).status_code == 503
            assert (await probe.get(f"{plain}/healthz")).status_code == 200
            assert "guerdon_ready 0.0" in (await probe.get(f"{plain}/metrics")).text
        await served.still_serves()
        for name in NAMES:
            await served.until_health(name, NOT_SERVING)
        await served.still_serves()
        served.server.lifecycle.start_draining()
        await asyncio.wait_for(served.finished, 30)


async def test_draining_waits_for_a_switch_that_has_begun(served: Harness) -> None:
    served.engine.behaviour.publish_gate.clear()
    publishing = asyncio.ensure_future(served.publish(1))
    await until(lambda: not served.engine._resumed.is_set())
    served.server.lifecycle.start_draining()
    await asyncio.sleep(0.05)
    assert not served.finished.done()
    served.engine.behaviour.publish_gate.set()
    assert (await publishing).version == 1
    await asyncio.wait_for(served.finished, 10)


async def test_draining_is_bounded_by_its_grace() -> None:
    async with start_sampler(drain_grace=0.2) as served:
        served.engine.behaviour.gate.clear()
        stuck = asyncio.ensure_future(served.generate(item(n=2)))
        await until(lambda: served.engine.running == 2)
        served.server.lifecycle.start_draining()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stuck
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(served.finished, 10)
        assert served.engine.running == 0


async def test_a_dead_engine_ends_the_process_with_its_reason(served: Harness) -> None:
    served.engine.behaviour.gate.clear()
    stuck = asyncio.ensure_future(served.generate(item(n=2)))
    await until(lambda: served.engine.running == 2)
    served.engine.die("the engine's process was killed")
    served.engine.behaviour.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stuck
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(EngineDied, match="the engine's process was killed"):
        await asyncio.wait_for(served.finished, 10)
    assert served.engine.stopped


async def test_a_policy_that_is_refused_ends_the_start() -> None:
    engine = FormulaEngine()
    engine.behaviour.start_error = CheckpointRefused("the folder holds no weights")
    config = load_config(None, {"model": "x", "port": 0, "http_port": -1})
    server = SamplerServer(config, engine, WordTokenizer())
    with pytest.raises(CheckpointRefused, match="no weights"):
        await server.run(lambda ports: None, signals=False)
    assert engine.stopped


@pytest.mark.parametrize("fault", ["fails", "nonfinite"])
async def test_an_engine_that_starts_and_cannot_draw_is_refused(fault: str) -> None:
    engine = FormulaEngine()
    setattr(engine.behaviour, fault, True)
    config = load_config(None, {"model": "x", "port": 0, "http_port": -1})
    server = SamplerServer(config, engine, WordTokenizer())
    with pytest.raises(CheckpointRefused, match="can't draw a token of formula: the engine"):
        await server.run(lambda ports: None, signals=False)
    assert engine.stopped


async def test_the_server_listens_and_is_not_ready_while_the_engine_starts() -> None:
    engine = FormulaEngine()
    started = asyncio.Event()
    engine.start = started.wait  # type: ignore[assignment, method-assign]
    config = load_config(None, {"model": "x", "port": 0, "http_port": 0})
    server = SamplerServer(config, engine, WordTokenizer())
    ready = asyncio.Event()
    running = asyncio.create_task(server.run(lambda ports: ready.set(), signals=False))
    await until(lambda: len(server._listener._http) == 1)
    assert not ready.is_set()
    assert not server.lifecycle.ready
    started.set()
    await asyncio.wait_for(ready.wait(), 10)
    server.lifecycle.start_draining()
    await running


async def test_a_signal_while_the_engine_starts_ends_the_start() -> None:
    engine = FormulaEngine()
    starting = asyncio.Event()

    async def start() -> None:
        starting.set()
        await asyncio.Event().wait()

    engine.start = start  # type: ignore[method-assign]
    config = load_config(None, {"model": "x", "port": 0, "http_port": -1})
    server = SamplerServer(config, engine, WordTokenizer())
    running = asyncio.create_task(server.run(lambda ports: None, signals=False))
    await starting.wait()
    server.lifecycle.start_draining()
    await asyncio.wait_for(running, 10)
    assert engine.stopped


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


async def code_of(call: Any) -> Any:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_who_may_sample_may_not_replace_the_weights(tmp_path: Path) -> None:
    sample, admin = tmp_path / "sample", tmp_path / "admin"
    sample.write_text("for-sampling")
    admin.write_text("for-weights")
    async with start_sampler(token_file=sample, admin_token_file=admin) as served:
        stub: Any = policy_pb2_grpc.PolicyServiceStub(served.channel)
        unauthenticated = grpc.StatusCode.UNAUTHENTICATED
        denied = grpc.StatusCode.PERMISSION_DENIED
        for metadata, sampling, updating in (
            ((), unauthenticated, unauthenticated),
            (bearer("wrong"), unauthenticated, unauthenticated),
            (bearer("for-sampling"), grpc.StatusCode.OK, denied),
            (bearer("for-weights"), denied, grpc.StatusCode.OK),
        ):
            assert await code_of(stub.Generate(request(), metadata=metadata)) is sampling
            call = stub.UpdateWeights(update(1), metadata=metadata, timeout=20)
            try:
                await reply_of(call)
                found = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                found = error.code()
            assert found is updating
        for path in ("/v1/policy", "/v1/generate"):
            reply = await served.http.request("GET" if "policy" in path else "POST", path)
            assert reply.status_code == 401
        headers = {"authorization": "Bearer for-sampling"}
        assert (await served.http.get("/v1/policy", headers=headers)).status_code == 200
        assert (await served.http.get("/metrics")).status_code == 200


async def test_a_token_for_sampling_alone_guards_updates_too(tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    sample.write_text("for-sampling")
    async with start_sampler(token_file=sample) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.publish(1)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await served.policy.UpdateWeights(update(1), metadata=bearer("for-sampling"))


async def test_callers_of_a_tokens_file_have_limits_and_shares_of_their_own(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    roles = 'roles = ["sample"]'
    tokens.write_text(
        f'[callers.small]\ntoken = "s"\n{roles}\nmax_tokens = 20\n'
        f'[callers.greedy]\ntoken = "g"\n{roles}\n'
    )
    async with start_sampler(tokens=tokens, max_in_flight=8) as served:
        small, greedy = bearer("s"), bearer("g")
        served.engine.behaviour.gate.clear()

        def ask(token: Any, n: int) -> Any:
            return code_of(served.policy.Generate(request(item(n=n), max_tokens=9), metadata=token))

        assert await ask(small, 3) is grpc.StatusCode.INVALID_ARGUMENT
        drawing = [asyncio.ensure_future(ask(greedy, 1)) for _ in range(8)]
        await until(lambda: served.engine.running == 8)
        assert await ask(small, 1) is grpc.StatusCode.RESOURCE_EXHAUSTED
        served.engine.behaviour.gate.set()
        assert set(await asyncio.gather(*drawing)) == {grpc.StatusCode.OK}
        served.engine.behaviour.gate.clear()
        drawing = [asyncio.ensure_future(ask(small, 1)) for _ in range(2)]
        await until(lambda: served.engine.running == 2)
        crowd = [asyncio.ensure_future(ask(greedy, 1)) for _ in range(8)]
        await until(lambda: sum(call.done() for call in crowd) == 4)  # its half is taken
        served.engine.behaviour.gate.set()
        found = Counter(await asyncio.gather(*crowd))
        assert found == {grpc.StatusCode.OK: 4, grpc.StatusCode.RESOURCE_EXHAUSTED: 4}
        assert set(await asyncio.gather(*drawing)) == {grpc.StatusCode.OK}


def test_open_updates_need_a_token_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUERDON_TOKEN", "for-sampling")
    monkeypatch.delenv("GUERDON_ADMIN_TOKEN", raising=False)

    def make(**flags: Any) -> None:
        config = load_config(None, {"model": "x", "host": "0.0.0.0", **flags})
        SamplerServer(config, FormulaEngine(), WordTokenizer())

    with pytest.raises(SettingsError, match="could replace the weights"):
        make()
    make(updates=False)
    monkeypatch.setenv("GUERDON_ADMIN_TOKEN", "for-weights")
    make()


def test_a_settings_file_with_the_key_that_did_nothing_still_loads(tmp_path: Path) -> None:
    file = tmp_path / "sampler.toml"
    file.write_text('model = "x"\nencode_threads = 4\n')
    assert load_config(file, {}) == load_config(None, {"model": "x"})
