"""Kernels that the engine might use on this processor, beside those that it does.

Products of the model's shapes as they are, packed beforehand and in int8; and the attention of a
group's answers in one call or in two parts. Private functions of torch's: it is a trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tests.bench.common import BenchSettings, table

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
"""Outputs and inputs of SmolLM2-135M's linear layers."""
ROWS = (30, 120, 1000)
ANSWERS, LENGTH, PROMPT, HEADS, KEY_HEADS, SIZE = 16, 256, 1024, 9, 3, 64


def milliseconds(call: Callable[[], object], repeats: int = 15) -> float:
    """The first quartile of the times of a call."""
    call()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return 1000 * sorted(taken)[repeats // 4]


def product_forms(outputs: int, inputs: int, rows: int) -> dict[str, Callable[[], torch.Tensor]]:
    """One product [rows, inputs] × [outputs, inputs], in each form."""
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    small, _ = int8_product(outputs, inputs, rows, 127)
    return {
        "float32": lambda: torch.nn.functional.linear(x, weight),
        "float32, packed by oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(
            x, packed, None, "none", [], ""
        ),
        "int8, activations of 7 bits": small,
    }


def int8_product(
    outputs: int, inputs: int, rows: int, most: int
) -> tuple[Callable[[], torch.Tensor], float]:
    """A product of int8 weights and of activations from 0 to `most`, and by how much it is wrong.

    An activation of (most + 1) / 2 stands for 0.
    """
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    levels = torch.randint(0, most + 1, (rows, inputs), dtype=torch.uint8)
    zero = (most + 1) // 2
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inputs])
    ones, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)

    def product() -> torch.Tensor:
        found: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, zero, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return found

    exact = (levels.long() - zero) @ weight.long().T
    return product, float((product() - exact).abs().max())


def attention_forms() -> dict[str, Callable[[], torch.Tensor]]:
    """One layer's attention of a group's answers, [answers, length, heads, size], in each form."""
    query = torch.randn(ANSWERS, LENGTH, HEADS, SIZE)
    shared = torch.randn(2, PROMPT, KEY_HEADS, SIZE)
    own = torch.randn(2, ANSWERS, LENGTH, KEY_HEADS, SIZE)
    mask = torch.ones(LENGTH, PROMPT + LENGTH, dtype=torch.bool).tril(PROMPT)
    group = HEADS // KEY_HEADS
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def one_call(mask: torch.Tensor | None = mask) -> torch.Tensor:
        prompt = shared[:, None].expand(2, ANSWERS, PROMPT, KEY_HEADS, SIZE)
        keys, values = torch.cat([prompt, own], 2).transpose(2, 3)
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query.transpose(1, 2), keys, values, mask, enable_gqa=True).transpose(1, 2)

    def two_parts() -> torch.Tensor:
        folded = query.view(ANSWERS * LENGTH, KEY_HEADS, group, SIZE).permute(1, 2, 0, 3)
        keys, values = shared.transpose(1, 2)[:, None]
        first, first_sum = flash(folded.reshape(1, KEY_HEADS, -1, SIZE), keys, values)
        keys, values = own.transpose(2, 3).repeat_interleave(group, 2)
        second, second_sum = flash(query.transpose(1, 2), keys, values, 0.0, True)
        first = first.view(KEY_HEADS, group, ANSWERS, LENGTH, SIZE).permute(2, 3, 0, 1, 4)
        first_sum = first_sum.view(KEY_HEADS, group, ANSWERS, LENGTH).permute(2, 3, 0, 1)
        share = torch.sigmoid(
            first_sum.reshape(ANSWERS, LENGTH, HEADS)
            - second_sum.view(ANSWERS, HEADS, LENGTH).transpose(1, 2)
        )
        return torch.lerp(second.transpose(1, 2), first.reshape(query.shape), share[..., None])

    assert torch.allclose(one_call(), two_parts(), atol=1e-5)
    return {
        "one masked call (the engine's)": one_call,
        "the same without its mask, which is wrong": lambda: one_call(None),
        "prompt and own part, merged by log-sum-exp": two_parts,
    }


@torch.inference_mode()
def run(settings: BenchSettings) -> None:
    """Print both tables, and whether int8 products are exact here."""
    rows = []
    for count in ROWS:
        taken: dict[str, float] = {}
        for shape in SHAPES:
            for name, product in product_forms(*shape, count).items():
                taken[name] = taken.get(name, 0.0) + milliseconds(product)
        work = sum(2e-6 * count * outputs * inputs for outputs, inputs in SHAPES)
        rows += [
            (f"{count} tokens, {name}", f"{each:.2f} ms ({work / each:.0f} GFLOP/s)")
            for name, each in taken.items()
        ]
    for most, bits in ((127, 7), (255, 8)):
        _, error = int8_product(*SHAPES[-1], ROWS[-1], most)
        rows.append((f"int8, activations of {bits} bits: wrong by", f"{error:.0f}"))
    table("products of one layer", rows, settings.console)
    forms = attention_forms()
    table(
        f"attention of {ANSWERS} answers of {LENGTH} tokens to a prompt of {PROMPT}, one layer",
        [(name, f"{milliseconds(form, 9):.1f} ms") for name, form in forms.items()],
        settings.console,
    )
