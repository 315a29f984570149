"""Kernels that the engine might use on this processor, beside those that it does.

Products of the model's shapes with weights as they are, in oneDNN's layout and in int8; and the
attention of a group's answers, and of a few alone, in each form. It calls private functions of
torch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from tests.bench.common import BenchSettings, table

from guerdon.reward.engine.prepacked import PrepackedLinear
from guerdon.reward.engine.stepwise import attend_stepwise

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
"""Outputs and inputs of SmolLM2-135M's linear layers."""
ROWS = (30, 120, 1000)
HEADS, KEY_HEADS, SIZE = 9, 3, 64
SEQUENCES = ((16, 256, 1024), (8, 60, 400), (8, 200, 0), (32, 60, 0))
"""Answers, tokens of each, and tokens of the prompt that they have in common."""


def milliseconds(call: Callable[[], object], repeats: int = 15) -> float:
    """The first quartile of the times of a call."""
    call()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return 1000 * sorted(taken)[repeats // 4]


def product_forms(
    outputs: int, inputs: int, rows: int, dtype: torch.dtype
) -> dict[str, Callable[[], torch.Tensor]]:
    """One product [rows, inputs] × [outputs, inputs], in each form."""
    plain = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    packed, x = PrepackedLinear(plain), torch.randn(rows, inputs, dtype=dtype)
    small, _ = int8_product(outputs, inputs, rows, 127)
    return {
        "as they are": lambda: plain(x),
        "in oneDNN's layout": lambda: packed(x),
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


def attention_forms(
    answers: int, length: int, prompt: int, dtype: torch.dtype
) -> dict[str, Callable[[], torch.Tensor]]:
    """One layer's attention of answers to one prompt, [answers, length, heads, size]."""
    query = torch.randn(answers, length, HEADS, SIZE, dtype=dtype)
    shared = torch.randn(2, prompt, KEY_HEADS, SIZE, dtype=dtype)
    own = torch.randn(2, answers, length, KEY_HEADS, SIZE, dtype=dtype)
    allowed = torch.ones(length, prompt + length, dtype=torch.bool).tril(prompt)
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    group = HEADS // KEY_HEADS
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def gathered() -> Iterator[torch.Tensor]:
        copies = shared[:, None].expand(2, answers, prompt, KEY_HEADS, SIZE)
        return iter(torch.cat([copies, own], 2).transpose(2, 3))

    def one_call(mask: torch.Tensor | None = mask) -> torch.Tensor:
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query.transpose(1, 2), *gathered(), mask, enable_gqa=True).transpose(1, 2)

    def two_products() -> torch.Tensor:
        given = {"reach": prompt + 1, "scale": SIZE**-0.5, "softcap": None}
        found = attend_stepwise(query.transpose(1, 2), *gathered(), None, **given)
        return found.transpose(1, 2)

    def two_parts() -> torch.Tensor:
        folded = query.view(answers * length, KEY_HEADS, group, SIZE).permute(1, 2, 0, 3)
        keys, values = shared.transpose(1, 2)[:, None]
        first, first_sum = flash(folded.reshape(1, KEY_HEADS, -1, SIZE), keys, values)
        keys, values = own.transpose(2, 3).repeat_interleave(group, 2)
        second, second_sum = flash(query.transpose(1, 2), keys, values, 0.0, True)
        first = first.view(KEY_HEADS, group, answers, length, SIZE).permute(2, 3, 0, 1, 4)
        first_sum = first_sum.view(KEY_HEADS, group, answers, length).permute(2, 3, 0, 1)
        share = torch.sigmoid(
            first_sum.reshape(answers, length, HEADS)
            - second_sum.view(answers, HEADS, length).transpose(1, 2)
        )
        first = first.reshape(query.shape)
        return torch.lerp(second.transpose(1, 2), first, share[..., None].to(dtype))

    def uncopied() -> torch.Tensor:
        (prompt_key, prompt_value), later = (
            shared.transpose(1, 2),
            mask[:, prompt:].repeat(group, 1),
        )
        folded = query.view(answers, length, KEY_HEADS, group, SIZE).transpose(1, 3)
        out = torch.empty_like(folded)
        for q, k, v, o in zip(folded, *own, out, strict=True):
            q = q.transpose(0, 1).reshape(KEY_HEADS, group * length, SIZE)
            first = torch.baddbmm(q.new_empty(()), q, prompt_key.mT, beta=0, alpha=SIZE**-0.5)
            second = torch.baddbmm(later, q, k.transpose(0, 1).mT, alpha=SIZE**-0.5)
            weights = torch.softmax(torch.cat([first, second], -1), -1)
            found = torch.bmm(weights[..., :prompt], prompt_value)
            found = found.baddbmm_(weights[..., prompt:], v.transpose(0, 1))
            o.copy_(found.view(KEY_HEADS, group, length, SIZE).transpose(0, 1))
        return out.transpose(1, 3).reshape(query.shape)

    forms = {"one masked call": one_call, "two products and a softmax": two_products}
    if prompt:
        forms["the same for each part, the prompt's keys not copied"] = uncopied
        assert torch.allclose(one_call(), uncopied(), atol=1e-5 if dtype.itemsize == 4 else 0.05)
        forms["the masked call without its mask, which is wrong"] = lambda: one_call(None)
        forms["prompt and own part, merged by log-sum-exp"] = two_parts
        assert torch.allclose(one_call(), two_parts(), atol=1e-5 if dtype.itemsize == 4 else 0.02)
    assert torch.allclose(one_call(), two_products(), atol=1e-5 if dtype.itemsize == 4 else 0.05)
    return forms


@torch.inference_mode()
def run(settings: BenchSettings) -> None:
    """Print all tables, and whether int8 products are exact here."""
    dtype = getattr(torch, settings.dtype)
    rows = []
    for count in ROWS:
        taken: dict[str, float] = {}
        for shape in SHAPES:
            for name, product in product_forms(*shape, count, dtype).items():
                taken[name] = taken.get(name, 0.0) + milliseconds(product)
        work = sum(2e-6 * count * outputs * inputs for outputs, inputs in SHAPES)
        rows += [
            (f"{count} tokens, {name}", f"{each:.2f} ms ({work / each:.0f} GFLOP/s)")
            for name, each in taken.items()
        ]
    for most, bits in ((127, 7), (255, 8)):
        _, error = int8_product(*SHAPES[-1], ROWS[-1], most)
        rows.append((f"int8, activations of {bits} bits: wrong by", f"{error:.0f}"))
    table(f"products of one layer, {settings.dtype}", rows, settings.console)
    for shape in SEQUENCES:
        answers, length, prompt = shape
        table(
            f"attention of one layer, {answers} × {length} on {prompt}",
            [
                (name, f"{milliseconds(form, 9):.1f} ms")
                for name, form in attention_forms(*shape, dtype).items()
            ],
            settings.console,
        )
