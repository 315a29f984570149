"""What a process knows by itself of a launcher's run, and what it computes on.

Nothing heavy is imported. `process_group` is where processes meet.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from guerdon.models.devices import DeviceError, cpu_multiplies_bfloat16, has_gpu, set_up_cuda
from guerdon.trainer.common.errors import SettingsError

WAIT = timedelta(hours=6)
"""How long processes wait for one another: rollouts, or measures on one of them, may take hours."""


def is_main() -> bool:
    """Whether this is the process of a run that prints and writes: rank 0 of a launcher's."""
    return int(os.environ.get("RANK", "0")) == 0


def use_gpu() -> bool:
    """Whether to compute on CUDA; loads torch, and sets it up for this process.

    Raises:
        SettingsError: there is a GPU that torch can't use.
    """
    set_up_cuda()
    try:
        return has_gpu()
    except DeviceError as error:
        raise SettingsError(str(error)) from error


def settle_dtype(settings: Any) -> None:
    """Replace `dtype = "auto"` of frozen settings by the type that this machine is fast in.

    That is bfloat16 on a GPU and on processors with instructions for it, else float32.

    Raises:
        SettingsError: there is a GPU that torch can't use.
    """
    if settings.dtype == "auto":
        fast = use_gpu() or cpu_multiplies_bfloat16()
        object.__setattr__(settings, "dtype", "bfloat16" if fast else "float32")


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def partition(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal items to ranks so that their sizes are about equal: the largest first, each to the
    rank with the least. Every rank's items are in ascending order."""
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0, rank) for rank in range(ranks)]
    for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, rank = heapq.heappop(least)
        dealt[rank].append(place)
        heapq.heappush(least, (load + sizes[place], rank))
    return [sorted(places) for places in dealt]
