"""Receives broadcasts of tensors by NCCL, and writes their bytes to standard output.

    python -m guerdon.sampler.engine.nccl_receive

Each line of standard input asks for one update: {"source": {…}, "specs": [{…}, …]}. The answer is
`joined` and a line's end, then every tensor's bytes in order; or a line that says why there will be
none, and the process's end. The line `null` leaves the group: not before, since the sender may not
have seen the end of the last broadcast. It ends with its standard input, whatever it waits for.

The group, the rendezvous and the broadcast are vLLM's own NCCL weight-transfer engine, into which
a model is put that passes on what it is given.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch

from guerdon.sampler.engine.nccl import JOINED
from guerdon.sampler.types import NcclSource, TensorSpec

_KNOCK_SECONDS = 60.0


class WeightWriter:
    """A stand-in for vLLM's model that writes what it is to load."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Write the tensors' bytes: row-major, little-endian."""
        for _, tensor in weights:
            # Copying to the host waits for the broadcast, which is on the same stream.
            data: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self._out.write(memoryview(data))


def new_engine(model: WeightWriter, device: str) -> Any:
    """vLLM's NCCL engine, for one worker."""
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    # Only these are asked for: the rank among the sampler's workers, which is one process here.
    alone: Any = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config: Any = SimpleNamespace(parallel_config=alone, model_config=None)
    loads_weights: Any = model
    return NCCLWeightTransferEngine(
        WeightTransferConfig(backend="nccl"), config, torch.device(device), loads_weights
    )


def init_info(source: NcclSource) -> dict[str, Any]:
    """How vLLM's engine joins: tensor by tensor, so that no two sides must agree on buffers."""
    return {
        "master_address": source.master_address,
        "master_port": source.master_port,
        "world_size": source.world_size,
        "rank_offset": source.rank_offset,
        "packed": False,
    }


def update_info(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What vLLM's engine is to receive."""
    return {
        "names": [spec.name for spec in specs],
        "dtype_names": [spec.dtype for spec in specs],
        "shapes": [list(spec.shape) for spec in specs],
    }


def join(engine: Any, source: NcclSource) -> None:
    """Tell the trainer that we are there, and make the group with it.

    Raises:
        Exception: whatever went wrong.
    """
    # The trainer enters NCCL, which can't be left, only when it knows of us.
    place = (source.master_address, source.master_port)
    socket.create_connection(place, timeout=_KNOCK_SECONDS).close()
    engine.init_transfer_engine(engine.parse_init_info(init_info(source)))
    if engine.model_update_group.disabled:
        # vLLM's communicator then does nothing, and says nothing.
        raise RuntimeError("vLLM found no NCCL library, or is told not to use it")


def serve(asked: dict[str, Any], out: BinaryIO, *, device: str) -> Any:
    """Answer one line that asks.

    Returns:
        vLLM's engine, which is still in the group.

    Raises:
        Exception: whatever went wrong; the process is of no more use.
    """
    source = NcclSource(**asked["source"])
    specs = [TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in asked["specs"]]
    engine = new_engine(WeightWriter(out), device)
    try:
        join(engine, source)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        out.write(reason.encode()[:1000] + b"\n")
        out.flush()
        raise
    out.write(JOINED)
    out.flush()
    engine.receive_weights(engine.parse_update_info(update_info(specs)))
    out.flush()
    return engine


def _read(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # the main thread may be in NCCL


def main(device: str = "cuda:0") -> None:
    """What the sampler runs; does not return."""
    # What vLLM prints must not come between the bytes.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(lines,), daemon=True).start()
        engine: Any = None
        while True:
            asked = json.loads(lines.get())
            if engine is not None:
                engine.shutdown()
            engine = None if asked is None else serve(asked, out, device=device)


if __name__ == "__main__":
    main()
