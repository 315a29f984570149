"""`guerdon serve sampler` on vLLM with the real client, and how its processes end.

`test_service_vllm` ends one by SIGTERM after its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tests.support.sampler import (
    END_SECONDS,
    descendants,
    engine_processes,
    running_sampler,
    sampler_command,
    wait_gone,
)
from tests.support.server import RunningServer

from guerdon.client import GuerdonError, Retry, TokenIds
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Canary, GenerateItem, TensorSpec

pytest.importorskip("vllm")
from tests.support.engine import PROMPT, Plain, bytes_of, drawn, specs_of

pytestmark = pytest.mark.slow

FLAGS = {"dtype": "float32", "threads": 1, "kv_cache_gib": 1}


async def drive(sampler: RunningServer, folder: Path) -> None:
    """Draw, publish, draw again."""
    plain = Plain(folder)
    new = drawn(load_file(folder / "model.safetensors"), seed=21)
    specs = [TensorSpec(s.name, s.dtype, s.shape) for s in specs_of(new)]
    ids = list(range(10, 40))
    canary = Canary(ids, plain.logprobs(new, ids).tolist())
    item = GenerateItem(TokenIds(PROMPT.tolist()), n=4)
    async with AsyncPolicyClient(sampler.address) as policy:
        first = [c async for c in policy.generate([item], max_tokens=8)]
        assert [c.spans[0].version for c in first] == [0] * 4
        answer = await policy.update_weights(1, bytes_of(new), specs=specs, canaries=[canary])
        assert (answer.version, answer.canary_tokens) == (1, 29)
        assert answer.canary_max_difference < 1e-4
        info = await policy.get_policy()
        assert (info.weight_version, info.dtype) == (1, "float32")
        async for completion in policy.generate([item], max_tokens=8, min_version=1):
            whole = [*PROMPT, *completion.token_ids]
            expected = plain.logprobs(new, whole)[len(PROMPT) - 1 :]
            assert np.abs(completion.logprobs - expected).max() < 1e-3


@pytest.fixture(scope="module")
def samplers(tied_policy: Path) -> Iterator[list[RunningServer]]:
    """One for each test that ends it, started together: each takes its time alone."""
    contexts = [running_sampler(tied_policy, **FLAGS) for _ in range(2)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(contexts)) as pool:
        yield list(pool.map(stack.enter_context, contexts))


def test_sigterm_during_the_start_leaves_nothing(tied_policy: Path, tmp_path: Path) -> None:
    command = sampler_command(tied_policy, ready_file=tmp_path / "ready.json", **FLAGS)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not any("VLLM" in name for name in descendants(process.pid).values()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = descendants(process.pid)
    process.terminate()
    # A start can't be interrupted: it is waited for, and then ended.
    assert process.wait(120) == 0, (tmp_path / "log").read_text()
    wait_gone(below)
    assert not (tmp_path / "ready.json").exists()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_it_serves_the_client_and_its_engine_leaves_with_it_when_it_is_killed(
    samplers: list[RunningServer], tied_policy: Path
) -> None:
    sampler = samplers[0]
    asyncio.run(drive(sampler, tied_policy))
    with urllib.request.urlopen(f"{sampler.url}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert "guerdon_sampler_weight_version 1.0" in metrics
    below = engine_processes(sampler)
    sampler.kill()
    wait_gone(below)


def test_it_fails_and_leaves_when_its_engine_is_killed(samplers: list[RunningServer]) -> None:
    async def draw(sampler: RunningServer, core: int) -> None:
        item = GenerateItem(TokenIds(PROMPT.tolist()), n=4)
        async with AsyncPolicyClient(sampler.address, retry=Retry(attempts=1)) as policy:

            async def ask() -> None:
                async for _ in policy.generate([item], max_tokens=900, ignore_eos=True):
                    pass

            drawing = asyncio.create_task(ask())
            while not (await policy.get_policy()).running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            os.kill(core, signal.SIGKILL)
            for asked in (drawing, ask()):
                with pytest.raises(GuerdonError):
                    await asked

    sampler = samplers[1]
    below = engine_processes(sampler)
    core = next(pid for pid, name in below.items() if "VLLM::EngineCor" in name)
    asyncio.run(draw(sampler, core))
    assert sampler.process.wait(END_SECONDS) == 1
    wait_gone(below)
    assert "the engine died" in sampler.log()
