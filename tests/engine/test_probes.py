"""A model whose packed scores part from plain transformers runs padded, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.support import Reference, engine_scores, item, load, mixed_batch
from tests.support.tiny import ARCHITECTURES, tiny_checkpoint

from guerdon.reward.engine import attention
from guerdon.reward.engine.engine import PackedEngine, PaddedEngine
from guerdon.reward.engine.heads import find_head
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import ComputeMode, EngineOutOfMemory
from guerdon.serving.errors import CheckpointRefused

Make = Callable[..., Path]

AUTO = EngineSettings()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_packed_but_deberta(
    architecture: str, dtype: torch.dtype, checkpoint: Make
) -> None:
    model = load(checkpoint(architecture), dtype)
    pad = model.config.pad_token_id
    selected = select_engine(model, AUTO, 256)
    if architecture == "deberta-v2":
        assert selected.engine.mode is ComputeMode.PADDED
        assert "brings its own attention" in selected.reason
    else:
        assert selected.engine.mode is ComputeMode.PACKED, selected.reason
        assert selected.reason == ""
    assert model.config.pad_token_id == pad, "probing must leave the config as it was"
    if dtype is torch.float32:
        assert 0 < selected.difference < 1e-4


def _wrong(fault: str) -> Callable[..., Any]:
    """The packed attention with one fault."""

    def faulty(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if fault == "scale":
            kwargs["scaling"] = 1.02 * kwargs["scaling"]
        elif fault == "window":
            kwargs["sliding_window"] = kwargs["sliding_window"] and kwargs["sliding_window"] + 1
        elif fault == "no window":
            kwargs["sliding_window"] = None
        elif fault == "softcap":
            kwargs["softcap"] = None
        elif fault == "raises":
            raise RuntimeError("no such kernel")
        elif fault == "whole row":
            plan = kwargs["guerdon_plan"]
            whole = attention.Segment(0, query.shape[2])
            kwargs["guerdon_plan"] = attention.AttentionPlan([whole], plan.device)
        return attention.packed_attention(module, query, key, value, mask, **kwargs)

    return faulty


@pytest.fixture
def break_packed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a faulty attention in the place of the packed one."""

    def put(fault: str) -> None:
        def register() -> None:
            attention.AttentionInterface.register(attention.PACKED, _wrong(fault))

        monkeypatch.setattr("guerdon.reward.engine.engine.register", register)

    return put


FAULTS = [
    ("llama", "scale"),
    ("llama", "whole row"),
    ("llama", "raises"),
    ("mistral", "window"),
    ("gemma2", "no window"),
    ("gemma2", "softcap"),
    ("modernbert", "window"),
    ("bert", "whole row"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "fault"), FAULTS)
def test_a_fault_in_packed_attention_falls_back(
    architecture: str,
    fault: str,
    dtype: torch.dtype,
    checkpoint: Make,
    break_packed: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    break_packed(fault)
    folder = checkpoint(architecture)
    with caplog.at_level(logging.WARNING):
        selected = select_engine(load(folder, dtype), AUTO, 256)
    assert selected.engine.mode is ComputeMode.PADDED
    expected = "no such kernel" if fault == "raises" else "differ from plain transformers"
    assert expected in selected.reason
    assert selected.reason in caplog.text
    if dtype is torch.float32:
        batch = mixed_batch(np.random.default_rng(0), 6)
        wanted = Reference(folder).scores(batch)
        np.testing.assert_allclose(engine_scores(selected.engine, batch), wanted, atol=1e-4)


def test_packed_mode_refuses_what_cannot_be_packed(
    checkpoint: Make, break_packed: Callable[[str], None]
) -> None:
    break_packed("scale")
    with pytest.raises(CheckpointRefused, match="packed mode was asked for, but packed probe"):
        select_engine(load(checkpoint("llama")), EngineSettings(mode="packed"), 256)
    with pytest.raises(CheckpointRefused, match="brings its own attention"):
        select_engine(load(checkpoint("deberta-v2")), EngineSettings(mode="packed"), 256)


def test_padded_mode_never_packs(checkpoint: Make) -> None:
    selected = select_engine(load(checkpoint("llama")), EngineSettings(mode="padded"), 256)
    assert selected.engine.mode is ComputeMode.PADDED
    assert selected.reason == "the settings ask for padded batches"


def test_both_broken_is_refused(
    checkpoint: Make, break_packed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_packed("scale")
    # Left-hand positions of a padded batch are off by one.
    run = PaddedEngine._hidden
    monkeypatch.setattr(
        PaddedEngine, "_hidden", lambda self, t, p, *a, **k: run(self, t, np.maximum(p, 1), *a, **k)
    )
    with pytest.raises(CheckpointRefused, match=r"padded batches and plain transformers.*packed"):
        select_engine(load(checkpoint("llama")), AUTO, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["deberta-v2", "llama", "bert"])
def test_a_padding_mask_that_hides_one_token_is_refused(
    architecture: str, dtype: torch.dtype, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token of the longest sequence is not seen: half precision alone would hide that."""
    run = PaddedEngine._hidden

    def hidden(self: PaddedEngine, t: Any, p: Any, types: Any, **kwargs: Any) -> torch.Tensor:
        if "attention_mask" in kwargs and t.shape[1] > 90:
            kwargs["attention_mask"][0, 30] = 0
        return run(self, t, p, types, **kwargs)

    monkeypatch.setattr(PaddedEngine, "_hidden", hidden)
    with pytest.raises(CheckpointRefused, match="between padded batches and plain transformers"):
        select_engine(load(checkpoint(architecture), dtype), EngineSettings(mode="padded"), 256)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(
    value: float, dtype: torch.dtype, checkpoint: Make
) -> None:
    model = load(checkpoint("llama"), dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = value
    with pytest.raises(CheckpointRefused, match="not finite"):
        select_engine(model, AUTO, 256)


def test_an_unknown_head_is_refused(checkpoint: Make) -> None:
    model = load(checkpoint("llama"))

    class WithGate(type(model)):  # type: ignore[misc]
        """A custom head, as ArmoRM has one."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.__class__ = WithGate
    with pytest.raises(CheckpointRefused, match="head of WithGate is not one"):
        find_head(model)


def test_dynamic_rope_is_refused(checkpoint: Make) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = load(checkpoint("llama", rope_parameters=rope))
    with pytest.raises(CheckpointRefused, match="dynamic"):
        select_engine(model, AUTO, 256)


EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
FAR = 700


@pytest.mark.parametrize(
    ("architecture", "packed"),
    [("qwen2_moe", False), ("phimoe", False), ("mixtral", True), ("olmo3", True)],
)
def test_a_window_in_the_mask_alone_is_not_lost(
    architecture: str, packed: bool, tmp_path: Path
) -> None:
    """Qwen2-MoE and PhiMoE window by the mask only; the probes are shorter than this window."""
    window = {"use_sliding_window": True, "sliding_window": FAR, "max_window_layers": 1}
    folder = tiny_checkpoint(
        tmp_path, architecture, max_positions=1024, num_key_value_heads=2, **EXPERTS, **window
    )
    selected = select_engine(load(folder), AUTO, 1024)
    assert (selected.engine.mode is ComputeMode.PACKED) is packed, selected.reason
    if not packed:
        assert f"masks more than it tells its attention (a window or chunk of {FAR}" in (
            selected.reason
        )
    batch = [item(np.random.default_rng(0), 0, [900]), item(np.random.default_rng(1), 720, [9, 30])]
    wanted = Reference(folder).scores(batch)
    np.testing.assert_allclose(engine_scores(selected.engine, batch), wanted, atol=1e-4)


def test_sparse_attention_is_refused(checkpoint: Make) -> None:
    model = load(checkpoint("llama"))
    model.config.index_topk = 8
    with pytest.raises(CheckpointRefused, match="index_topk"):
        select_engine(model, AUTO, 256)


def test_a_model_that_plain_transformers_cannot_compute_is_refused(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoint("llama"))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise TypeError("an unexpected keyword")

    monkeypatch.setattr(model.base_model, "forward", fail)
    with pytest.raises(CheckpointRefused, match="can't be computed: TypeError: an unexpected"):
        select_engine(model, AUTO, 256)


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 24])
def test_probes_of_a_very_short_model(max_tokens: int, checkpoint: Make) -> None:
    model = load(checkpoint("gpt2", max_positions=max_tokens))
    assert select_engine(model, AUTO, max_tokens).engine.mode is ComputeMode.PACKED


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_told_apart(
    error: Exception, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PackedEngine(load(checkpoint("llama")))
    batch = mixed_batch(np.random.default_rng(0), 2)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(engine.base, "forward", fail)
    with pytest.raises(EngineOutOfMemory):
        engine.compute(batch)


def test_other_errors_pass_through(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(load(checkpoint("llama")))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(engine.base, "forward", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.compute(mixed_batch(np.random.default_rng(0), 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"threads": 0}, "threads is 0"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineSettings(**settings)
