"""The trainer's side of an update by NCCL: rank 0, which broadcasts to the sampler's ranks.

The rendezvous is vLLM's own (a TCP store and its NCCL communicator), so vLLM must be installed
beside the trainer, and both sides need a CUDA GPU of their own. Each update makes a group anew:
a sampler that was restarted needs no other treatment. The sampler must be one rank.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import threading
from typing import Any

import torch

from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Nccl, WeightUpdate
from guerdon.trainer.errors import SettingsError
from guerdon.trainer.rl.weights import Weights

_WORLD = 2
"""The trainer's rank and the sampler's."""


def check_nccl(offered: bool, address: str) -> None:
    """Refuse where NCCL can't be.

    Args:
        offered: whether the sampler takes updates by NCCL.
        address: the sampler's HOST:PORT.

    Raises:
        SettingsError: says what is missing.
    """
    if not torch.cuda.is_available():
        raise SettingsError("publish is nccl, but the trainer has no CUDA GPU: use stream")
    if importlib.util.find_spec("vllm") is None:
        raise SettingsError("publish is nccl, but vLLM, whose rendezvous it uses, is not installed")
    if not offered:
        raise SettingsError(f"publish is nccl, but the sampler at {address} takes no such updates")


async def update_by_nccl(
    client: AsyncPolicyClient, weights: Weights, address: str, **options: Any
) -> WeightUpdate:
    """One update; the tensors go from this process's current CUDA device.

    Args:
        address: the sampler's HOST:PORT, towards which our own address is looked up.
        options: of `update_weights`.

    Raises:
        GuerdonError: it failed or was refused.
    """
    host, port = _own_address(address), _free_port()
    source = Nccl(host, port, world_size=_WORLD, rank_offset=1)
    # A thread that nobody waits for at exit: where the sampler refuses, it stays in NCCL.
    sending = threading.Thread(target=_send, args=(host, port, weights), daemon=True)
    sending.start()
    update = await client.update_weights(
        weights.version, source, specs=weights.specs, canaries=weights.canaries, **options
    )
    await asyncio.to_thread(sending.join)
    return update


def _send(host: str, port: int, weights: Weights) -> None:
    from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

    device = torch.cuda.current_device()
    group: Any = stateless_init_process_group(host, port, 0, _WORLD, device)
    try:
        for tensor in weights.tensors():
            on_device = tensor.detach().to(device).contiguous()
            group.broadcast(on_device, src=0, stream=torch.cuda.current_stream())
        torch.cuda.current_stream().synchronize()
    finally:
        group.destroy()


def _own_address(peer: str) -> str:
    """Our address on the way to a peer; a UDP socket that is connected sends nothing."""
    host, _, port = peer.rpartition(":")
    family, kind, *_, place = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
