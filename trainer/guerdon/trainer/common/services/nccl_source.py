"""The weights as vLLM's trainer engine wants them. Imports vLLM."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from guerdon.trainer.common.services.weights import Weights


class NamedTensors(WeightSource):  # type: ignore[misc]
    """Implements vLLM's source; vLLM compares what comes with what was announced.

    Args:
        device: where each tensor goes first, one at a time.
    """

    def __init__(self, weights: Weights, device: str) -> None:
        self._weights, self._device = weights, device

    def metadata(self) -> list[ParamMeta]:
        """Name, type and shape of each tensor, in the order of sending."""
        return [
            ParamMeta(spec.name, getattr(torch, spec.dtype), tuple(spec.shape))
            for spec in self._weights.specs
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for spec, tensor in zip(self._weights.specs, self._weights.tensors(), strict=True):
            yield spec.name, tensor.detach().to(self._device).contiguous()
