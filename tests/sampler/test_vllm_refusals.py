"""Updates that fail late, or where there is little room: the old weights, and nobody disturbed."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from guerdon.sampler.engine.launch import engine_arguments, start_failure
from guerdon.sampler.engine.settings import EngineSettings
from guerdon.sampler.engine.switch import Switch
from guerdon.sampler.engine.vllm_engine import VLLMEngine
from guerdon.sampler.types import PublishOrder
from guerdon.serving.errors import CheckpointRefused, Unavailable, UpdateRefused

pytest.importorskip("vllm")
from tests.support.engine import drawn

if TYPE_CHECKING:
    from tests.support.engine import Served

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


def switch_of(served: Served) -> Switch:
    switch = served.engine._switch
    assert switch is not None
    return switch


async def test_canaries_that_fail_in_the_engine_bring_the_old_weights_back(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = served.engine.version
    drawing = asyncio.create_task(served.draw(n=3, max_tokens=300, ignore_eos=True))
    await served.until_running(3)

    async def fail(_update: Any) -> Any:
        raise RuntimeError("vLLM gave no log-probabilities of a canary")

    with monkeypatch.context() as patched:
        patched.setattr(switch_of(served), "_compare", fail)
        with pytest.raises(UpdateRefused, match="canaries"):
            await served.publish(drawn(served.tensors, seed=20))
    served.check(await drawing)
    await served.check_serving(version)


async def test_a_reset_that_is_refused_interrupts_nobody(served: Served) -> None:
    version, old = served.engine.version, served.tensors
    drawing = asyncio.create_task(served.draw(n=4, max_tokens=300, ignore_eos=True))
    await served.until_running(4)
    with pytest.raises(UpdateRefused, match="canaries"):
        await served.publish(drawn(old, seed=21), believed=old, reset=True, version=1)
    served.check(await drawing)
    await served.check_serving(version)


async def test_little_shared_memory_sends_weights_to_the_disk(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has 64 MiB of it unless told otherwise."""
    plain = shutil.disk_usage

    def usage(path: Any) -> Any:
        return SimpleNamespace(free=1000) if str(path).startswith("/dev/shm") else plain(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    await served.publish(drawn(served.tensors, seed=22))
    await served.check_serving(served.engine.version)


async def test_old_weights_that_do_not_come_back_are_noticed_without_canaries(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.publish(drawn(served.tensors, seed=23))
    switch = switch_of(served)
    good = switch._good
    assert good is not None
    wrong, staged_wrong = await served.stage(drawn(served.tensors, seed=24))
    staging, staged = await served.stage(drawn(served.tensors, seed=25))
    whole = staged.path.read_bytes()
    staged.path.write_bytes(whole[: len(whole) // 2])
    order = PublishOrder(
        version=served.engine.version + 1, reset=False, canaries=(), mean_tolerance=0.0
    )
    with monkeypatch.context() as patched:
        patched.setattr(good, "path", Path(staged_wrong.path))
        with pytest.raises(Unavailable, match="lost its weights"):
            await served.engine.publish(staged, order)
    dead = asyncio.create_task(served.engine.wait_dead())
    assert "could not be restored" in await asyncio.wait_for(dead, 5)
    with pytest.raises(Unavailable):
        await served.draw()
    staging.close()
    wrong.close()
    switch.fatal = ""  # other tests go on with this engine, whose next update is whole


async def test_the_load_is_split_by_vllms_own_limit(served: Served) -> None:
    drawing = asyncio.create_task(served.draw(n=20, max_tokens=200, ignore_eos=True))
    await served.until_running(20)
    assert served.engine.load() == (16, 4)
    await drawing
    assert served.engine.load() == (0, 0)


async def test_an_engine_that_fails_at_its_start_is_not_explained_by_a_process_list() -> None:
    said = start_failure(
        RuntimeError(
            "Engine core initialization failed. See root cause above. "
            "Failed core proc(s): {'EngineCore': 1}"
        )
    )
    assert said == "its engine's process failed at its start, and wrote why to the log above"
    assert start_failure(OSError("no file x\nand more")) == "no file x"
    assert start_failure(ValueError()) == "ValueError"


async def test_a_start_that_fails_says_the_useful_sentence(tied_policy: Path) -> None:
    engine = VLLMEngine(tied_policy, "tiny", EngineSettings(max_model_len=10_000))
    with pytest.raises(CheckpointRefused, match=r"max_model_len \(10000\) is greater than") as told:
        await engine.start()
    assert "validation error" not in str(told.value)
    assert "\n" not in str(told.value)
    await engine.shutdown()
    await engine.shutdown()


async def test_the_cause_in_the_engines_process_is_in_the_sentence(tied_policy: Path) -> None:
    """A cache larger than any memory: vLLM's worker finds that out, two processes away.

    The flag wins over what the environment says.
    """
    command = [sys.executable, "-m", "guerdon.cli.main", "serve", "sampler", "--port", "0"]
    flags = {"--model": str(tied_policy), "--http-port": "-1", "--kv-cache-gib": "100000"}
    process = await asyncio.create_subprocess_exec(
        *command,
        *itertools.chain(*flags.items()),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode not in (0, None)
    (sentence,) = [line for line in said.decode().splitlines() if line.startswith("guerdon serve")]
    assert "vLLM can't serve" in sentence
    assert "Available memory on node 0" in sentence
    assert "stack trace" not in sentence


@pytest.mark.parametrize(
    ("instructions", "asked", "wanted"),
    [
        ({}, "auto", "float32"),
        ({"avx512_bf16": True}, "auto", "auto"),
        ({}, "bfloat16", "bfloat16"),
    ],
)
async def test_a_processor_without_bfloat16_computes_in_float32(
    instructions: dict[str, bool],
    asked: str,
    wanted: str,
    tied_policy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions)
    assert engine_arguments(tied_policy, EngineSettings(dtype=asked)).dtype == wanted
