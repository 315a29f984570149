"""Linear layers of a CPU's model on weights that oneDNN has laid out for its products beforehand.

Otherwise a product of float32 is MKL's, which takes a slow path on processors that aren't Intel's,
and one of bfloat16 lays its weights out anew each time (`docs/performance.md`). torch's compiler
does the same, by the same operators, when it freezes a model.
"""

from __future__ import annotations

import torch
from torch import nn


class PrepackedLinear(nn.Module):
    """A linear layer, [*, inputs] → [*, outputs], that holds its weight in oneDNN's layout.

    It can't be copied or pickled, and its weight is no parameter.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    @property
    def weight(self) -> torch.Tensor:
        """The weight [outputs, inputs] as it was, laid out anew each time."""
        weight: torch.Tensor = self._packed.to_dense()
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the weight, and the bias added."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return found


def prepack(network: nn.Module) -> None:
    """Put the linear layers of a network's blocks in oneDNN's layout, on a CPU with AVX-512.

    Blocks are what stands in an `nn.ModuleList`. Heads and poolers stay as they are: they are
    computed for a few places, from float32 copies.
    """
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                _prepack_block(block)


def _prepack_block(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear and _gains(child.weight):
            setattr(module, name, PrepackedLinear(child))
        else:
            _prepack_block(child)


def _gains(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if weight.dtype == torch.bfloat16:
        return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch._C._has_mkldnn and weight.dtype == torch.float32
