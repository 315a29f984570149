"""Devices and number types that models are computed in, and what a device's errors mean."""

from __future__ import annotations

import contextlib
import gc

import torch

from guerdon.models.devices import DeviceError, has_gpu
from guerdon.reward.engine.malloc import give_back_freed_memory
from guerdon.reward.types import DeviceLost, EngineOutOfMemory
from guerdon.serving.errors import Unsupported

# Of torch's CPU allocator, and of CUDA and its libraries beside torch's own allocator.
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")


def resolve_device(name: str) -> torch.device:
    """The device that a setting means.

    Raises:
        Unsupported: this machine lacks it, or it can't be used; the text says why.
    """
    try:
        gpu = name != "cpu" and has_gpu()
        device = torch.device(("cuda" if gpu else "cpu") if name == "auto" else name)
    except DeviceError as error:
        raise Unsupported(f"{error}, or set the device to cpu") from error
    except RuntimeError as error:
        raise Unsupported(f"{name!r} is no device: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if gpu else 0):
        raise Unsupported(
            f"the device is {name!r}, and this machine has {torch.cuda.device_count()} CUDA GPUs "
            f"that torch {torch.__version__} can use"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number type that a setting means; GPUs before Ampere have no bfloat16."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if is_ampere(device) else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def is_ampere(device: torch.device) -> bool:
    """Whether a GPU is of compute capability 8.0 or newer: it has bfloat16 and flash attention."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def interpret_error(
    error: BaseException, device: torch.device
) -> EngineOutOfMemory | DeviceLost | None:
    """What an error says of the device; None where it is of another kind."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return EngineOutOfMemory(text)
    if any(words in text for words in _OUT_OF_MEMORY):
        return EngineOutOfMemory(text)
    if isinstance(error, torch.AcceleratorError) or not _answers(device):
        return DeviceLost(f"{device} failed: {text}")
    return None


def _answers(device: torch.device) -> bool:
    """Whether a device still works: after some errors every call of its context fails."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def release_memory(device: torch.device) -> None:
    """Give back what allocators keep for nobody: torch's of a GPU, or this process's."""
    if device.type == "cpu":
        give_back_freed_memory()
    if device.type == "cuda":
        gc.collect()  # modules hold each other in circles
        with contextlib.suppress(RuntimeError):  # of a device that is lost
            torch.cuda.empty_cache()
