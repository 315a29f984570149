"""What the GPU and the processor of this machine can do. Torch is loaded when that is asked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/version")
_HIDDEN = ("", "-1")
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""What torch calls these instructions, on x86 and on ARM."""


class DeviceError(Exception):
    """A device can't be used; the text is one plain sentence."""


def has_gpu() -> bool:
    """Whether to compute on CUDA. Without a GPU, or with all hidden, it is False.

    Raises:
        DeviceError: there is a GPU that this torch can't use (its driver is too old for the
            wheel, say). To compute on the CPU instead, and in another number type, would be a
            surprise of hours.
    """
    import torch

    with warnings.catch_warnings():  # torch warns of what is said here
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return True
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in _HIDDEN
        if hidden or torch.version.cuda is None or not _DRIVER.exists():
            return False
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:
            why = str(error).strip().split("\n")[0]
        else:
            why = "torch finds no GPU"
    raise DeviceError(
        f"the NVIDIA GPU of this machine can't be used by torch {torch.__version__}: {why}. "
        "Update the driver, or hide the GPU with CUDA_VISIBLE_DEVICES= to compute on the CPU"
    )


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for matrix products in bfloat16.

    Without them torch takes up to twenty times as long as in float32. Before torch knew its
    processor (`torch.cpu.get_capabilities`) the answer is False.
    """
    import torch

    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in _BFLOAT16)


def set_up_cuda() -> None:
    """Settings of torch for this process that every program here wants; harmless without a GPU."""
    import torch

    # cuDNN's attention may plan anew for every shape, and here nearly every batch has its own.
    torch.backends.cuda.enable_cudnn_sdp(False)
