"""NCCL's place taken by a communicator for CPUs, under vLLM's own rendezvous and engines.

    put_in_place()                                  # in this process, until it ends
    python -m tests.support.nccl_cpu                # the sampler's receiver

The variable NCCL_CPU says what the communicator does: "absent" is as where there is no library.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


class StoreCommunicator:
    """What vLLM's weight transfer needs of its `PyNcclCommunicator`; tensors go by the store."""

    def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
        self.group, self.device = group, device
        self.rank, self.world_size = group.rank, group.world_size
        self.disabled = os.environ.get("NCCL_CPU") == "absent"
        # As NCCL's start: nobody goes on before everybody is there.
        assert group.all_gather_obj(group.rank) == list(range(group.world_size))

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        assert tensor.is_contiguous()
        found = self.group.broadcast(tensor, src)
        if self.rank != src:
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            tensor.copy_(found)

    def destroy(self) -> None:
        self.group = None


def put_in_place(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the communicator, and what asks for CUDA.

    Args:
        put: such as pytest's `monkeypatch.setattr`.
    """
    from vllm.distributed.device_communicators import pynccl

    put(pynccl, "PyNcclCommunicator", StoreCommunicator)
    put(torch.cuda, "current_stream", lambda: None)
    put(torch.accelerator, "current_device_index", lambda: 0)


if __name__ == "__main__":
    from guerdon.sampler.engine import nccl_receive

    put_in_place()
    nccl_receive.main("cpu")
