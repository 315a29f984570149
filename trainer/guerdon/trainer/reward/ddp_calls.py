"""Computing with parts of a model that `DistributedDataParallel` wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def call_through_ddp(model: Any, compute: Callable[[Any], Tensor]) -> Tensor:
    """What `compute` makes of the model, as if it were the model's forward pass.

    DDP averages the gradients of what its own forward pass computed; of a decoder and a head that
    are called by themselves it knows nothing.

    Args:
        model: wrapped or not.
        compute: given the model without the wrapper.
    """
    if not isinstance(model, DistributedDataParallel):
        return compute(model)
    inner = model.module
    own = inner.forward

    def forward(_: None) -> Tensor:
        inner.forward = own  # which `compute` may call
        return compute(inner)

    inner.forward = forward
    try:
        found: Tensor = model(None)  # on a GPU DDP wants an argument to move there
    finally:
        inner.forward = own
    return found
