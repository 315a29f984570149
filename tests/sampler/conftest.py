"""One vLLM engine for all tests of it: starting takes 20 seconds."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.support.tiny import tiny_checkpoint

if TYPE_CHECKING:
    from tests.support.engine import Served


@pytest.fixture(scope="session")
def tied_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose output layer shares the embeddings' weights."""
    path = tmp_path_factory.mktemp("tied") / "tiny"
    return tiny_checkpoint(
        path, "llama", causal_lm=True, head_dim=32, tie_word_embeddings=True, max_positions=1024
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def one_engine(tied_policy: Path) -> AsyncIterator[Served]:
    """The engine on it, in float32, and the weights that it serves."""
    pytest.importorskip("vllm")
    from safetensors.torch import load_file
    from tests.support.engine import Plain, Served

    from guerdon.sampler.engine.settings import EngineSettings
    from guerdon.sampler.engine.vllm_engine import VLLMEngine

    settings = EngineSettings(dtype="float32", kv_cache_gib=1, threads=1, max_num_seqs=16)
    engine = VLLMEngine(tied_policy, "tiny", settings)
    with warnings.catch_warnings():
        # vLLM's import compiles a function, and torch's own import for that warns of itself.
        warnings.filterwarnings("ignore", "`torch.jit.script_method`", DeprecationWarning)
        await engine.start()
    tensors = load_file(tied_policy / "model.safetensors")
    try:
        yield Served(engine, tied_policy, Plain(tied_policy), tensors, {0: tensors})
    finally:
        await engine.shutdown()
        gc.collect()  # what was left open is told of here, and not in another test


@pytest_asyncio.fixture(loop_scope="session")
async def served(one_engine: Served) -> Served:
    """The engine with the weights that it began with, whatever test came before."""
    from tests.support.engine import checksum

    begun, engine = one_engine.history[0], one_engine.engine
    if engine.version and engine.sha256 != checksum(begun):
        await one_engine.publish(begun)
    one_engine.tensors = begun
    return one_engine
