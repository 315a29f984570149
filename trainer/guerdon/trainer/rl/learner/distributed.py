"""What the ranks of a run tell each other: sums, maxima, whole states."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.process_group import ProcessGroup
from guerdon.trainer.common.processes import WAIT


def make_accelerator(patience: float = 600.0) -> Accelerator:
    """Accelerate's, for one process, DDP or FSDP2 as `accelerate launch` was told.

    Every rank loads the whole policy, since each one needs its reference.

    Args:
        patience: seconds that a service may stay away: the ranks wait for rank 0 meanwhile, and
            for whole rollouts besides, so their own limit is much longer.

    Raises:
        SettingsError: something else was asked for.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    limit = timedelta(seconds=2 * patience) + WAIT
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=limit)])
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if accelerator.num_processes > 1 and asked and accelerator.device.type == "cpu":
        _shard_on_cpu(accelerator)
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise SettingsError("FSDP 1 is not supported: set fsdp_version to 2 for accelerate launch")
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise SettingsError(f"{kind.value} is not supported: use DDP or FSDP2")
    return accelerator


def _shard_on_cpu(accelerator: Accelerator) -> None:
    """Accelerate takes FSDP for GPUs only, and would quietly go on with DDP.

    Its states share their attributes, and every new one copies those of `PartialState`.
    """
    PartialState().distributed_type = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()


class Ranks(ProcessGroup):
    """The processes of a reinforcement-learning run; implements `Reduce`.

    Args:
        accelerator: of this process.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator.num_processes, accelerator.process_index)
        self._accelerator = accelerator

    def device(self) -> torch.device:
        """The device on which this process computes."""
        found: torch.device = self._accelerator.device
        return found

    def sum(self, values_K: Tensor) -> Tensor:
        """See `Reduce`."""
        return self._reduce(values_K, dist.ReduceOp.SUM)

    def max(self, values_K: Tensor) -> Tensor:
        """See `Reduce`."""
        return self._reduce(values_K, dist.ReduceOp.MAX)

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return int(self.max(torch.tensor([float(number)], dtype=torch.float64)).item())

    def merge(
        self, sums: Mapping[str, float], maxima: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and maxima of all ranks; a rank may lack keys."""
        added: dict[str, float] = {}
        highest: dict[str, float] = {}
        for more, most in self.all_gather((dict(sums), dict(maxima))):
            for name, value in more.items():
                added[name] = added.get(name, 0.0) + value
            for name, value in most.items():
                highest[name] = max(highest.get(name, value), value)
        return added, highest

    def full_state(self, model: nn.Module, module: nn.Module) -> dict[str, Tensor]:
        """The whole weights on the CPU: on rank 0 where they are sharded, else views."""
        if self.world_size == 1:
            return dict(module.state_dict())
        found: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
        return found

    def state(self, model: nn.Module, optimizer: Any) -> tuple[Any, Any]:
        """Weights and optimiser, whole, by the parameters' names (on rank 0 when sharded)."""
        found = get_state_dict(model, optimizer.optimizer, options=_WHOLE)
        return found[0], found[1]

    def load_state(self, model: nn.Module, optimizer: Any, weights: Any, moments: Any) -> None:
        """Take up what `state` gave; every rank has it."""
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_optimizer_state_dict(model, optimizer.optimizer, moments, options=options)
        # What has not learnt yet has no moments (while the value model warms up), but was just
        # given empty ones that count a step.
        learnt = set(moments["state"])
        for name, parameter in model.named_parameters():
            if name.removeprefix("module.") not in learnt:
                optimizer.optimizer.state.pop(parameter, None)

    def _reduce(self, values_K: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return values_K
        moved = values_K.clone().to(self.device())
        dist.all_reduce(moved, op=operation)
        return moved.cpu()


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
