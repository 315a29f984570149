"""Linear layers whose weights lie in oneDNN's layout, in the models that serve on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine.support import Reference, engine_scores, load, mixed_batch
from tests.support.tiny import ARCHITECTURES
from torch import nn

from guerdon.reward.engine import prepacked
from guerdon.reward.engine.prepacked import PrepackedLinear, prepack
from guerdon.reward.engine.probes import select_engine
from guerdon.reward.engine.settings import EngineSettings

needs_onednn = pytest.mark.skipif(
    not prepacked._gains(nn.Linear(1, 1).weight), reason="needs oneDNN and AVX-512"
)


class Network(nn.Module):
    """Two blocks, and a pooler beside them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.pooler = nn.Linear(48, 48, dtype=dtype)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(48, 80, dtype=dtype, bias=bias)})
            for bias in (True, False)
        )


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 48), (1, 7, 48), (2, 300, 48)])
def test_products_and_weights_are_the_same(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, plain = (Network(torch.float32) for _ in range(2))
    plain.load_state_dict(network.state_dict())
    prepack(network)
    x = torch.randn(shape)
    with torch.inference_mode():
        for packed, layer in zip(network.blocks, plain.blocks, strict=True):
            assert isinstance(packed["up"], PrepackedLinear)
            assert torch.allclose(packed["up"](x), layer["up"](x), atol=1e-6)
            assert torch.equal(packed["up"].weight, layer["up"].weight)


def test_what_is_not_in_blocks_or_in_another_type_stays() -> None:
    network, half = Network(torch.float32), Network(torch.float16)
    prepack(network)
    prepack(half)
    assert type(network.pooler) is nn.Linear
    assert all(type(block["up"]) is nn.Linear for block in half.blocks)


@needs_onednn
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_that_serve_have_them_and_score_as_before(
    architecture: str, checkpoint: Callable[..., Path]
) -> None:
    folder = checkpoint(architecture)
    engine = select_engine(load(folder), EngineSettings(), 256).engine
    has = any(type(module) is PrepackedLinear for module in engine.base.modules())
    assert has == (architecture != "gpt2")  # whose layers are convolutions
    batch = mixed_batch(np.random.default_rng(0), 30)
    assert np.abs(engine_scores(engine, batch) - Reference(folder).scores(batch)).max() < 1e-4
