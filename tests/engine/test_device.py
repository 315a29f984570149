"""What the errors of a device mean, and which device is taken. No GPU is needed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.support import load, mixed_batch
from tests.support.old_driver import pretend_old_driver

from guerdon.reward.engine import device as engine_device
from guerdon.reward.engine.device import resolve_device, resolve_dtype
from guerdon.reward.engine.engine import PackedEngine
from guerdon.reward.engine.heads import _means
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import DeviceLost
from guerdon.serving.errors import CheckpointRefused, Unsupported

Make = Callable[..., Path]


def _failing(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_an_error_of_the_device_is_told_apart(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PackedEngine(load(checkpoint("llama")))
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(engine.base, "forward", _failing(error))
    with pytest.raises(DeviceLost, match="cpu failed: CUDA error: an illegal memory access"):
        engine.compute(mixed_batch(np.random.default_rng(0), 2))


def test_any_error_after_which_the_device_does_not_answer_is_one_of_the_device(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PackedEngine(load(checkpoint("llama")))
    monkeypatch.setattr(engine.base, "forward", _failing(RuntimeError("cuDNN error")))
    monkeypatch.setattr(engine_device, "_answers", lambda device: False)
    with pytest.raises(DeviceLost):
        engine.compute(mixed_batch(np.random.default_rng(0), 2))


def test_a_lost_device_is_no_reason_to_refuse_or_to_pad(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoint("llama"))
    error = torch.AcceleratorError("CUDA error: unspecified launch failure")
    monkeypatch.setattr(PackedEngine, "_forward", _failing(error))
    with pytest.raises(DeviceLost):
        select_engine(model, EngineSettings(), 256)


def test_out_of_memory_at_load_is_one_sentence(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the weights are moved, outside of any forward pass."""
    folder = checkpoint("llama")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr("transformers.PreTrainedModel.to", _failing(error))
    with pytest.raises(CheckpointRefused, match="does not fit in the memory of cpu as float32"):
        load_model(folder, name="m", settings=EngineSettings(device="cpu"))


def test_a_driver_that_is_too_old_is_refused_and_not_replaced_by_the_cpu(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_old_driver(monkeypatch, tmp_path)
    with pytest.raises(Unsupported, match=r"driver on your system is too old.*Update the driver"):
        load_model(checkpoint("llama"), name="m", settings=EngineSettings())
    assert resolve_device("cpu").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto").type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "this machine has 0 CUDA GPUs"), ("cuda:3", "has 0 CUDA"), ("gpu", "is no device")],
)
def test_a_device_that_is_not_there_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        resolve_device(name)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_before_ampere_computes_in_float16(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", torch.device("cuda")) is dtype
    assert resolve_dtype("bfloat16", torch.device("cuda")) is torch.bfloat16


def test_loading_switches_cudnn_attention_off(checkpoint: Make) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        load_model(checkpoint("llama"), name="m", settings=EngineSettings(device="cpu")).close()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_closed_model_is_freed_though_the_server_froze_its_heap(checkpoint: Make) -> None:
    model = load_model(checkpoint("llama"), name="m", settings=EngineSettings(device="cpu"))
    network = model._engines[0].model
    network.__dict__["itself"] = network  # as modules that hold each other
    alive = weakref.ref(network)
    del network
    gc.collect()
    gc.freeze()
    model.close()
    assert alive() is None


def test_means_add_nothing_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA `index_add_` adds in any order."""
    for name in ("index_add_", "index_add", "scatter_add_", "scatter_add"):
        monkeypatch.setattr(torch.Tensor, name, _failing(AssertionError(name)))
    hidden = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    sequences = [np.array([3, 4, 5]), np.array([0]), np.arange(29, 9, -1)]
    found = _means(hidden, sequences)
    wanted = np.stack([hidden.double().numpy()[s].mean(0) for s in sequences])
    np.testing.assert_allclose(found.double().numpy(), wanted, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_memory_is_given_back_after_a_load(checkpoint: Make) -> None:
    settings = EngineSettings(device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    load_model(checkpoint("llama"), name="m", settings=settings).close()
    assert torch.cuda.memory_reserved() <= before
