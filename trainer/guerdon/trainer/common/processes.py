"""The processes of a run that `torchrun` or `accelerate launch` started together.

Nothing heavy is imported before there is more than one of them.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

from guerdon.models.devices import DeviceError, cpu_multiplies_bfloat16, has_gpu, set_up_cuda
from guerdon.trainer.common.errors import ProcessGone, SaidElsewhere, SettingsError, TrainingError

T = TypeVar("T")

WAIT = timedelta(hours=6)
"""How long processes wait for one another: rollouts, or measures on one of them, may take hours."""
_NOT_OURS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}
_LEFT = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed")
"""What gloo says when a process at the other end has gone."""


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


class Processes:
    """The processes of a run; by default there is only this one.

    Args:
        count: of all.
        index: this one's, from 0; the first prints and writes.
    """

    def __init__(self, count: int = 1, index: int = 0) -> None:
        self.count, self.index = count, index

    @classmethod
    def join(cls) -> Processes:
        """Meet the others that the launcher started: over NCCL where there are GPUs, else gloo.

        Raises:
            SettingsError: the launcher was told of something that these recipes don't do.
        """
        if launched() == 1:
            return cls()
        for key, name in _NOT_OURS.items():
            if os.environ.get(key, "").lower() in ("1", "true"):
                kind = SettingsError if is_main() else SaidElsewhere
                raise kind(
                    f"{name} is not supported here: start the processes for DDP, by torchrun or "
                    "accelerate launch --multi_gpu"
                )
        from accelerate import PartialState

        # The launcher's own precision would overrule --dtype.
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        state = PartialState(cpu=not use_gpu(), timeout=WAIT)
        return cls(state.num_processes, state.process_index)

    @property
    def main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.index == 0

    def device(self) -> Any:
        """The `torch.device` on which this process computes."""
        import torch

        if self.count > 1:
            from accelerate import PartialState

            return PartialState(cpu=not use_gpu()).device
        return torch.device("cuda" if use_gpu() else "cpu")

    def gather(self, value: T) -> list[T]:
        """What every process has, in their order; all of them must ask. Blocks."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with _others_there():
            dist.all_gather_object(found, value)
        return found

    def any(self, mine: bool) -> bool:
        """Whether it is so in at least one process; all of them must ask. Blocks."""
        if self.count == 1:
            return mine
        import torch
        import torch.distributed as dist

        flag = torch.tensor(float(mine), device=self.device())
        with _others_there():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def deal(self, sizes: Sequence[int], compute: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """Compute something of many items, each in one process; all of it, in every process.

        Args:
            sizes: of the items; the processes get about equal sums of them.
            compute: of some items, given their places.
        """
        dealt = partition(sizes, self.count)
        parts = self.gather(list(compute(dealt[self.index])))
        found: dict[int, T] = {}
        for places, values in zip(dealt, parts, strict=True):
            found.update(zip(places, values, strict=True))
        return [found[place] for place in range(len(sizes))]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A part in which processes don't meet: what goes wrong in one of them ends them all.

        Raises:
            TrainingError: the first that any process raised; the others raise `SaidElsewhere`.
        """
        mine: TrainingError | None = None
        try:
            yield
        except TrainingError as error:
            mine = error
        found = self.gather(None if mine is None else str(mine))
        speaker = next((rank for rank, text in enumerate(found) if text is not None), None)
        if speaker is None:
            return
        if mine is not None and speaker == self.index:
            raise mine
        raise SaidElsewhere(str(found[speaker])) from mine

    @contextmanager
    def alike(self) -> Iterator[None]:
        """A part in which processes meet, and find the same wrong: only the first one says it.

        Raises:
            TrainingError: in the first process; the others raise `SaidElsewhere`.
            ProcessGone: another process has ended; in all that are left.
        """
        try:
            with _others_there() if self.count > 1 else nullcontext():
                yield
        except ProcessGone:  # perhaps the first
            raise
        except TrainingError as error:
            if self.main:
                raise
            raise SaidElsewhere(str(error)) from error


@contextmanager
def _others_there() -> Iterator[None]:
    """A part in which processes meet.

    Raises:
        ProcessGone: one of them has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _LEFT):
            raise ProcessGone("another process of this run has ended") from error
        raise


ALONE = Processes()
"""The one process of a run that has no others."""


@contextmanager
def start() -> Iterator[Processes]:
    """The processes of a run, which part at its end; after an error they don't wait for another.

    Raises:
        SettingsError: as `Processes.join`.
    """
    processes = Processes.join()
    yield processes
    if processes.count > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
