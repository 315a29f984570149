"""The attention kernel that serves, compared with the definition of attention.

Probes compare whole models, and half precision hides an attention that is off by one token. Here
the kernel is called alone, in the data type that it serves in, with inputs for which one key too
many or too few changes its output by a number of order one:

- A *marked* key has the logit L, all others 0. L is so large that one marked key outweighs all
  others together.
- Values are one-hot, so that an output is the weight that went to each group of keys.

The marks are put where off-by-one faults show: at the first and last token of every run of keys,
and at random ones. A last pass has no marks: all keys weigh the same, and each group's share is
compared relative to itself, so that a key is missed wherever it is. What comes out is known in
closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from guerdon.reward.engine.attention import AttentionPlan, attend
from guerdon.reward.engine.attention_record import AttentionCall
from guerdon.reward.engine.plan import Segment
from guerdon.reward.engine.stepwise import is_stepwise
from guerdon.serving.errors import CheckpointRefused

Table = Sequence[Segment]
"""The segments of one row, in its order."""

_MARKS = 3
"""Places of a segment's mark: its first token, its last, a random one."""
_UNMARKED = _MARKS
"""The pass in which all keys weigh the same."""
_SHORT_WINDOW = 5
"""Stands in for a window that is longer than the row."""


def check_kernels(
    calls: Iterable[AttentionCall], tables: Sequence[Table], device: torch.device
) -> None:
    """Compare `attend` with the definition, for each kind of call on each table.

    Raises:
        CheckpointRefused: an output differs by more than rounding explains.
    """
    for call in sorted(calls, key=repr):
        for table in tables:
            plan = AttentionPlan(table, device)
            for shown in _within_reach(call, table):
                for number in range(_MARKS + 1):
                    found = _difference(shown, plan, number)
                    if not found <= (allowed := _tolerance(shown, _logit(shown, table), device)):
                        raise CheckpointRefused(
                            f"the attention kernel for {_words(shown)} on {device} gives a weight "
                            f"that is off by {found:.2g}, and rounding explains {allowed:.2g}; "
                            "mode = 'padded' uses another kernel"
                        )


def _within_reach(call: AttentionCall, table: Table) -> Iterator[AttentionCall]:
    """The call, and one with a window that hides keys of this table where its own hides none."""
    yield call
    longest = _longest(table)
    if call.window is not None and call.window >= longest > _SHORT_WINDOW:
        yield replace(call, window=_SHORT_WINDOW)


def _longest(table: Table) -> int:
    return max(segment.reach for segment in table)


def _logit(call: AttentionCall, table: Table) -> float:
    """L: e times as much weight as all other keys of the longest sequence together."""
    return 1.0 + math.log(_longest(table))


def _tolerance(call: AttentionCall, logit: float, device: torch.device) -> float:
    """What rounding explains of a weight between 0 and 1, or relative to it."""
    # A rounded logit is off by half a step of its size, and a weight by a quarter of that at most.
    roundings = 4 if call.softcap is not None else int(is_stepwise(call, device))
    steps = 2.0 + roundings * logit / 8
    return steps * torch.finfo(call.dtype).eps + 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    query_THD: torch.Tensor
    key_KHD: torch.Tensor
    """Keys of the row, and after them those out of the prefix cache."""
    value_KHD: torch.Tensor
    weights_KH: torch.Tensor
    """exp(logit) of each key, for each head of keys, float64."""


def _inputs(call: AttentionCall, table: Table, device: torch.device, number: int) -> _Inputs:
    """Marked keys and one-hot values of one pass."""
    rng = np.random.default_rng(number)
    length = table[-1].start + table[-1].length
    runs = {run for segment in table for run in segment.context}
    runs |= {range(segment.start, segment.start + segment.length) for segment in table}
    keys = max(run.stop for run in runs)
    marks_KH = np.zeros((keys, call.key_heads), dtype=bool)
    for head in range(call.key_heads if number != _UNMARKED else 0):
        for run in sorted(runs, key=lambda run: run.start):
            inside = (0, len(run) - 1, rng.integers(len(run)))
            marks_KH[run[inside[(number + head) % _MARKS]], head] = True
    # All numbers of a query, and of a marked key, have one size: the kernel must use them all.
    size = math.sqrt(_logit(call, table) / (call.size * call.scale))
    size = float(torch.tensor(size, dtype=call.dtype))
    signs_HD = size * rng.choice([-1.0, 1.0], (call.key_heads, call.size))
    logit = call.size * size * size * call.scale
    if call.softcap is not None:
        logit = call.softcap * math.tanh(logit / call.softcap)
    values_KHD = np.eye(call.value_size)[rng.integers(call.value_size, size=(keys, call.key_heads))]
    heads_HD = signs_HD.repeat(call.heads // call.key_heads, axis=0)

    def tensor(array: npt.NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.array(array)).to(device, call.dtype)

    return _Inputs(
        query_THD=tensor(np.broadcast_to(heads_HD, (length, *heads_HD.shape))),
        key_KHD=tensor(marks_KH[:, :, None] * signs_HD),
        value_KHD=tensor(values_KHD),
        weights_KH=torch.from_numpy(np.where(marks_KH, math.exp(logit), 1.0)).to(device),
    )


def _difference(call: AttentionCall, plan: AttentionPlan, number: int) -> float:
    """Largest difference between the kernel's output and the definition."""
    inputs = _inputs(call, plan.segments, plan.device, number)
    with torch.inference_mode():
        output = attend(inputs.query_THD, inputs.key_KHD, inputs.value_KHD, plan, call)
        if not bool(output.isfinite().all()):
            return math.inf
        worst = 0.0
        for segment in plan.segments:
            own = slice(segment.start, segment.start + segment.length)
            wanted_THD = _defined(call, segment, inputs)
            wrong_THD = (output[own].double() - wanted_THD).abs()
            if number == _UNMARKED:
                wrong_THD /= wanted_THD.clamp(min=1 / segment.reach)
            worst = max(worst, float(wrong_THD.max()))
    return worst


def _defined(call: AttentionCall, segment: Segment, inputs: _Inputs) -> torch.Tensor:
    """A segment's outputs [T, H, D] by definition: what each query sees is a run of its keys."""
    places = torch.from_numpy(segment.keys()).to(inputs.weights_KH.device)
    weights_KH = inputs.weights_KH[places]
    values_KHD = inputs.value_KHD[places].double()
    place_T = torch.arange(segment.length, device=weights_KH.device) + segment.context_length
    keys = len(weights_KH)
    reach = keys if call.window is None else call.window
    begin_T = (place_T - reach + 1).clamp(min=0)
    end_T = place_T + 1 if call.causal else (place_T + reach).clamp(max=keys)
    outputs_THD = _between(weights_KH[:, :, None] * values_KHD, begin_T, end_T)
    outputs_THD /= _between(weights_KH, begin_T, end_T)[:, :, None]
    return outputs_THD.repeat_interleave(call.heads // call.key_heads, dim=1)


def _between(numbers: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Sums over the first axis from each `begin` to each `end`."""
    sums = torch.cat([torch.zeros_like(numbers[:1]), numbers.cumsum(0)])
    return sums[end] - sums[begin]


def _words(call: AttentionCall) -> str:
    what = "causal" if call.causal else "bidirectional"
    window = "" if call.window is None else f", window {call.window}"
    cap = "" if call.softcap is None else f", soft cap {call.softcap:g}"
    name = str(call.dtype).removeprefix("torch.")
    return (
        f"{what} attention ({name}, {call.heads} heads on {call.key_heads} of size {call.size}, "
        f"scale {call.scale:.3g}{window}{cap})"
    )
