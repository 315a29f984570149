"""A kernel that is wrong in half precision alone is found at load, and the model refused.

On a CPU a fault is put into what half precision computes, while float32 stays right: so it is
where a GPU's kernel serves half precision and float32 takes another path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from tests.engine.support import load
from tests.engine.varlen import varlen_by_definition, varlen_of_torch_2_11

from guerdon.reward.engine import attention
from guerdon.reward.engine.attention import AttentionPlan
from guerdon.reward.engine.attention_record import AttentionCall
from guerdon.reward.engine.kernels import check_kernels
from guerdon.reward.engine.plan import Segment
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import ComputeMode
from guerdon.serving.errors import CheckpointRefused

Make = Callable[..., Path]
HALF = (torch.bfloat16, torch.float16)


def _faulty(fault: str, call: AttentionCall, plan: AttentionPlan) -> Any:
    """What the kernel computes in the place of what it was asked for."""
    if fault == "window":
        return replace(call, window=call.window and call.window + 1), plan
    if fault == "no window":
        return replace(call, window=None), plan
    if fault == "causal":
        return replace(call, causal=not call.causal), plan
    if fault == "scale":
        return replace(call, scale=1.03 * call.scale), plan
    if fault == "soft cap":
        return replace(call, softcap=None), plan
    assert fault == "prompt"  # every response misses the prompt's last token
    short = [replace(s, context=tuple(r[:-1] for r in s.context)) for s in plan.segments]
    return call, AttentionPlan(short, plan.device)


FAULTS = [
    ("llama", "causal"),
    ("llama", "scale"),
    ("llama", "prompt"),
    ("mistral", "window"),
    ("mistral", "no window"),
    ("gemma2", "soft cap"),
    ("gemma2", "window"),
    ("modernbert", "window"),
    ("bert", "causal"),
]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("architecture", "fault"), FAULTS)
def test_a_fault_in_half_precision_alone_is_refused(
    architecture: str,
    fault: str,
    dtype: torch.dtype,
    checkpoint: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = attention._bucketed

    def kernel(q: Any, k: Any, v: Any, plan: AttentionPlan, call: AttentionCall) -> torch.Tensor:
        if q.dtype in HALF:
            call, plan = _faulty(fault, call, plan)
        return right(q, k, v, plan, call)

    monkeypatch.setattr(attention, "_bucketed", kernel)
    folder = checkpoint(architecture)
    with pytest.raises(CheckpointRefused, match=r"the attention kernel for .* is off by"):
        select_engine(load(folder, dtype), EngineSettings(), 256)
    assert select_engine(load(folder), EngineSettings(), 256).engine.mode is ComputeMode.PACKED


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Take a function for `varlen_attn`, and use it for half precision on the CPU."""

    def put(function: Any) -> None:
        monkeypatch.setattr(
            attention, "_varlen_fits", lambda q, v, softcap: q.dtype in HALF and softcap is None
        )
        monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", function)

    return put


@pytest.mark.parametrize("varlen", [varlen_by_definition, varlen_of_torch_2_11])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text", "modernbert", "gpt2"])
def test_varlen_of_either_signature_serves(
    architecture: str, varlen: Any, checkpoint: Make, varlen_on_cpu: Callable[[Any], None]
) -> None:
    """torch 2.11 has no `enable_gqa`: keys and values are repeated there."""
    calls: list[int] = []

    @functools.wraps(varlen)  # with its signature
    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return torch.as_tensor(varlen(*args, **kwargs))

    varlen_on_cpu(counted)
    model = load(checkpoint(architecture), torch.bfloat16)
    selected = select_engine(model, EngineSettings(), 256)
    assert selected.engine.mode is ComputeMode.PACKED, selected.reason
    assert calls


def _top_left(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
    """Flash attention before 2.1 put the causal mask at the top left."""
    query, key, value, cu_q, cu_k, _, _ = args
    outputs = []
    for i in range(len(cu_q) - 1):
        q, k = slice(*cu_q[i : i + 2].tolist()), slice(*cu_k[i : i + 2].tolist())
        mask = torch.ones(q.stop - q.start, k.stop - k.start, dtype=torch.bool).tril()
        out = torch.nn.functional.scaled_dot_product_attention(
            query[q].transpose(0, 1),
            key[k].transpose(0, 1),
            value[k].transpose(0, 1),
            attn_mask=mask,
            **kwargs,
        )
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def _exclusive(*args: Any, window_size: tuple[int, int], **kwargs: Any) -> torch.Tensor:
    left, right = window_size
    return varlen_by_definition(*args, window_size=(max(-1, left - 1), right), **kwargs)


def _default_scale(*args: Any, scale: float, **kwargs: Any) -> torch.Tensor:
    return varlen_by_definition(*args, scale=1.5 * scale, **kwargs)


def _no_such_keyword(*args: Any, **kwargs: Any) -> torch.Tensor:
    raise TypeError("varlen_attn() got an unexpected keyword argument")


@pytest.mark.parametrize(
    ("architecture", "varlen", "message"),
    [
        ("llama", _top_left, "is off by"),
        ("mistral", _exclusive, "is off by"),
        ("llama", _default_scale, "is off by"),
        ("llama", _no_such_keyword, "can't be computed: TypeError: varlen_attn"),
    ],
)
def test_a_wrong_varlen_is_refused(
    architecture: str,
    varlen: Any,
    message: str,
    checkpoint: Make,
    varlen_on_cpu: Callable[[Any], None],
) -> None:
    """An error of the kernel is no reason to serve padded and say nothing."""
    varlen_on_cpu(varlen)
    with pytest.raises(CheckpointRefused, match=message):
        select_engine(load(checkpoint(architecture), torch.bfloat16), EngineSettings(), 256)


CALL = AttentionCall(
    causal=True,
    window=None,
    scale=0.125,
    softcap=None,
    heads=4,
    key_heads=2,
    size=64,
    value_size=64,
    dtype=torch.bfloat16,
)
TABLE = [
    Segment(0, 30),
    Segment(30, 9, (range(30),)),
    Segment(39, 4, (range(30),)),
    Segment(43, 17),
]


@pytest.mark.parametrize("heads", [(4, 2), (6, 6), (8, 1)])
@pytest.mark.parametrize("size", [8, 64, 128])
@pytest.mark.parametrize("window", [None, 3, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_a_right_kernel_passes(
    heads: tuple[int, int], size: int, window: int | None, dtype: torch.dtype
) -> None:
    call = replace(
        CALL,
        heads=heads[0],
        key_heads=heads[1],
        size=size,
        value_size=size,
        window=window,
        scale=size**-0.5,
        dtype=dtype,
    )
    check_kernels([call, replace(call, softcap=50.0)], [TABLE], torch.device("cpu"))
    alone = [Segment(0, 30), Segment(30, 17)]
    check_kernels([replace(call, causal=False)], [alone], torch.device("cpu"))


@pytest.mark.parametrize("place", [0, 1, 16, 29])
def test_one_key_too_few_is_found_wherever_it_is(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token of a prompt, hidden from one response alone."""
    right = attention._bucketed

    def kernel(q: Any, k: Any, v: Any, plan: AttentionPlan, call: AttentionCall) -> torch.Tensor:
        out = right(q, k, v, plan, call)
        scores = torch.einsum("thd,khd->htk", q[30:39], k[:39].repeat_interleave(2, 1)).float()
        seen = torch.ones(9, 39, dtype=torch.bool).tril(30)
        seen[:, place] = False
        weights = (scores * call.scale).masked_fill(~seen, -torch.inf).softmax(-1)
        values = v[:39].repeat_interleave(2, 1).float()
        out[30:39] = torch.einsum("htk,khd->thd", weights, values).to(out.dtype)
        return out

    monkeypatch.setattr(attention, "_bucketed", kernel)
    with pytest.raises(CheckpointRefused, match="is off by"):
        check_kernels([CALL], [TABLE], torch.device("cpu"))
