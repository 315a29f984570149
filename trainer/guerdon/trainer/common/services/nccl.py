"""The trainer's side of an update by NCCL: rank 0, which broadcasts to the sampler.

Group and broadcast are vLLM's own NCCL weight-transfer engine (a TCP store and its communicator),
so vLLM must be installed beside the trainer, and both sides need a CUDA GPU of their own. Each
update makes a group anew: a sampler that was restarted needs no other treatment. The sampler's
receiver is one rank, however many GPUs compute the policy.

Nobody has run this on GPUs yet. The tests run both ends over vLLM's own engine and rendezvous with
a communicator for CPUs in NCCL's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Nccl, WeightUpdate
from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.services.weights import Weights

_WORLD, _RANK = 2, 1
"""The trainer and the sampler, whose one receiver takes whole tensors for all of its GPUs."""
_LOOK_SECONDS = 0.2


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
    """One update; the tensors go from the CUDA device on which they are, else the current one.

    Args:
        address: the sampler's HOST:PORT, towards which our own address is looked up.
        options: of `update_weights`.

    Raises:
        GuerdonError: it failed or was refused.
        TrainingError: our side of the broadcast failed.
    """
    device = _device(weights)
    # Listening before the sampler is told where: it knocks here when it is about to join.
    with socket.create_server((_own_address(address), 0)) as listener:
        host, port = listener.getsockname()
        source = Nccl(host, port, world_size=_WORLD, rank_offset=_RANK)
        asking = asyncio.ensure_future(
            client.update_weights(
                weights.version, source, specs=weights.specs, canaries=weights.canaries, **options
            )
        )
        give_up = partial(asyncio.get_running_loop().call_soon_threadsafe, asking.cancel)
        sending = Sending(weights, listener, device=device, on_error=give_up)
        sending.start()
        try:
            return await asking
        except asyncio.CancelledError:
            asking.cancel()
            if sending.error is None:
                raise
            raise TrainingError(f"the broadcast by NCCL failed: {sending.error}") from sending.error
        finally:
            sending.stop()


class Sending(threading.Thread):
    """Broadcasts once the sampler has knocked.

    A thread that nobody waits for: who is in NCCL can't be called back. It enters NCCL only when
    the sampler is about to do so, so a refusal leaves nothing behind.

    Args:
        listener: where the sampler knocks. Its port is then the rendezvous'.
        device: where NCCL sends from.
        on_error: called when it has failed.
    """

    def __init__(
        self,
        weights: Weights,
        listener: socket.socket,
        *,
        device: str,
        on_error: Callable[[], object],
    ) -> None:
        super().__init__(name="nccl", daemon=True)
        self._weights, self._listener, self._device = weights, listener, device
        self._on_error = on_error
        self._place = listener.getsockname()
        listener.settimeout(_LOOK_SECONDS)
        self._stopped = threading.Event()
        self.error: Exception | None = None
        """Why it failed."""

    def stop(self) -> None:
        """The update has ended: wait for no knock, and leave the group."""
        self._stopped.set()

    def run(self) -> None:
        """Wait, send everything, and stay in the group until the sampler has it."""
        try:
            place = self._knock()
            if place is not None:
                _send(*place, self._weights, self._device, self._stopped)
        except Exception as error:
            self.error = error
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody asks any more
                self._on_error()

    def _knock(self) -> tuple[str, int] | None:
        """The address, free again; None if it was stopped."""
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # closed: the update has ended
                break
            connection.close()
            self._listener.close()
            host, port = self._place
            return host, port
        return None


class SilentClient:
    """A stand-in for vLLM's client: what it would tell the sampler goes by `UpdateWeights`."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The sampler was told when the update began."""

    def start_weight_update(self) -> None:
        """The sampler stages the tensors, and starts when they are checked."""

    def update_weights(self, update_info: Any) -> None:
        """The sampler was told the tensors' names, shapes and types when the update began."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The sampler finishes by itself."""


def _send(host: str, port: int, weights: Weights, device: str, taken: threading.Event) -> None:
    """vLLM's own NCCL engine, from the trainer's end.

    Args:
        taken: set when the update has ended. Leaving the group earlier could cut off what NCCL
            took from us and has not yet delivered.
    """
    from vllm.distributed.weight_transfer.nccl_engine import (
        NCCLTrainerInitInfo,
        NCCLTrainerWeightTransferEngine,
    )

    from guerdon.trainer.common.services.nccl_source import NamedTensors

    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # a thread begins with the first one
    info = NCCLTrainerInitInfo(host, port, _WORLD, packed=False, rank=0)
    source = NamedTensors(weights, device)
    engine = NCCLTrainerWeightTransferEngine.trainer_init(
        info, client=SilentClient(), source=source
    )
    try:
        if engine.model_update_group is None or engine.model_update_group.disabled:
            # vLLM's communicator then does nothing, and says nothing.
            raise RuntimeError("vLLM found no NCCL library, or is told not to use it")
        engine.send_weights()
        taken.wait()
    finally:
        engine.shutdown()


def _device(weights: Weights) -> str:
    first = next(iter(weights.tensors()))
    return str(first.device) if first.is_cuda else f"cuda:{torch.cuda.current_device()}"


def _own_address(peer: str) -> str:
    """Our address on the way to a peer; a UDP socket that is connected sends nothing."""
    host, _, port = peer.rpartition(":")
    # vLLM's rendezvous knows IPv4 alone.
    family, kind, *_, place = socket.getaddrinfo(
        host.strip("[]"), int(port), socket.AF_INET, socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])
