"""The processes of a run that `torchrun` or `accelerate launch` started together, as they meet.

Nothing heavy is imported before there is more than one of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from guerdon.trainer.common.errors import ProcessGone, SaidElsewhere, SettingsError, TrainingError
from guerdon.trainer.common.processes import WAIT, is_main, launched, partition, use_gpu

T = TypeVar("T")

_NOT_OURS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron",
}
_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed")
"""What gloo says when a process at the other end has gone."""


class ProcessGroup:
    """The processes of a run; by default there is only this one.

    Args:
        world_size: how many there are.
        rank: this one's, from 0; rank 0 prints and writes.
    """

    def __init__(self, world_size: int = 1, rank: int = 0) -> None:
        self.world_size, self.rank = world_size, rank

    @classmethod
    def join(cls) -> ProcessGroup:
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
        return self.rank == 0

    def device(self) -> Any:
        """The `torch.device` on which this process computes."""
        import torch

        if self.world_size > 1:
            from accelerate import PartialState

            return PartialState(cpu=not use_gpu()).device
        return torch.device("cuda" if use_gpu() else "cpu")

    def all_gather(self, value: T) -> list[T]:
        """What every process has, in their order; all of them must ask. Blocks."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world_size
        with _meeting():
            dist.all_gather_object(found, value)
        return found

    def from_main(self, value: T) -> T:
        """What the first process has; all of them must ask. Blocks."""
        if self.world_size == 1:
            return value
        import torch.distributed as dist

        found = [value]
        with _meeting():
            dist.broadcast_object_list(found, src=0, device=self.device())
        return found[0]

    def any_rank(self, mine: bool) -> bool:
        """Whether it is so in at least one process; all of them must ask. Blocks."""
        if self.world_size == 1:
            return mine
        import torch
        import torch.distributed as dist

        flag = torch.tensor(float(mine), device=self.device())
        with _meeting():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def share_out(
        self, sizes: Sequence[int], compute: Callable[[list[int]], Sequence[T]]
    ) -> list[T]:
        """Compute something of many items, each in one process; all of it, in every process.

        Args:
            sizes: of the items; the processes get about equal sums of them.
            compute: of some items, given their places.
        """
        dealt = partition(sizes, self.world_size)
        parts = self.all_gather(list(compute(dealt[self.rank])))
        found: dict[int, T] = {}
        for places, values in zip(dealt, parts, strict=True):
            found.update(zip(places, values, strict=True))
        return [found[place] for place in range(len(sizes))]

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """A part in which processes don't meet: what goes wrong in one of them ends them all.

        Raises:
            TrainingError: the first that any process raised; the others raise `SaidElsewhere`.
        """
        mine: TrainingError | SettingsError | None = None
        try:
            yield
        except (TrainingError, SettingsError) as error:
            mine = error
        found = self.all_gather(None if mine is None else str(mine))
        speaker = next((i for i, text in enumerate(found) if text is not None), None)
        if speaker is None:
            return
        if mine is not None and speaker == self.rank:
            raise mine
        raise SaidElsewhere(str(found[speaker])) from mine

    @contextmanager
    def one_error(self) -> Iterator[None]:
        """A part in which processes meet, and find the same wrong: only the first one says it.

        Raises:
            TrainingError: in the first process; the others raise `SaidElsewhere`.
            ProcessGone: another process has ended; in all that are left.
        """
        try:
            with _meeting() if self.world_size > 1 else nullcontext():
                yield
        except ProcessGone:  # perhaps the first
            raise
        except (TrainingError, SettingsError) as error:
            if self.main:
                raise
            raise SaidElsewhere(str(error)) from error


@contextmanager
def _meeting() -> Iterator[None]:
    """A part in which processes meet.

    Raises:
        ProcessGone: one of them has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error).lower() for words in _GONE):
            raise ProcessGone("another process of this run has ended") from error
        raise


SINGLE_PROCESS = ProcessGroup()
"""The one process of a run that has no others."""


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The processes of a run, which part at its end; after an error they don't wait for another.

    Raises:
        SettingsError: as `ProcessGroup.join`.
    """
    processes = ProcessGroup.join()
    yield processes
    if processes.world_size > 1:
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
