"""How the processes of one GPU share its memory.

A trainer, a reward server and vLLM that each take what they find would leave the last one none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

SAMPLER_SHARE = 0.3
"""Of vLLM: weights, cache, and what it computes in."""
SHARES = {"serve reward": 0.15, "train": 0.4, "eval": 0.3}
"""Of the other commands that use a GPU. With the sampler's they leave room for what CUDA itself
takes in each process."""
NEEDED_GIB = 12.0
"""Free memory that `make demo` needs: estimated, 5 for training a policy of 135 M parameters in
float32, 4 for vLLM, 1 for the reward server, and CUDA's own in each."""


def gpu_memory() -> tuple[float, float] | None:
    """Free and total GiB of the GPU that is used, or None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return None
    found = subprocess.run(
        [
            program,
            "--query-gpu=memory.free,memory.total",
            "--format=csv,noheader,nounits",
            "-i",
            visible,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    numbers = found.stdout.strip().splitlines()[:1]
    if found.returncode != 0 or not numbers:
        return None
    free, total = (float(number) / 1024 for number in numbers[0].split(","))
    return free, total


def too_small(memory: tuple[float, float] | None, needed: float = NEEDED_GIB) -> str:
    """Empty, or why the programs can't share a GPU with so much memory, in one sentence."""
    if memory is None or memory[0] >= needed:
        return ""
    free, total = memory
    return (
        f"the GPU has {free:.1f} of {total:.1f} GiB free, and the programs that share it need "
        f"{needed:.0f}: end what else uses it, choose another by CUDA_VISIBLE_DEVICES, or set up "
        "for the CPU by GUERDON_BUILD=cpu"
    )


def sampler_flags(memory: tuple[float, float] | None) -> list[str]:
    """What vLLM is told of its share."""
    return [] if memory is None else ["--gpu-memory-utilization", f"{SAMPLER_SHARE}"]


def environment_of(command: Sequence[str], memory: tuple[float, float] | None) -> dict[str, str]:
    """The environment of a command of `guerdon`, with its share for torch's allocator.

    Args:
        command: what follows `guerdon`.
        memory: of `gpu_memory`.
    """
    share = next((s for name, s in SHARES.items() if " ".join(command).startswith(name)), None)
    if memory is None or share is None:
        return dict(os.environ)
    return {**os.environ, "PYTORCH_ALLOC_CONF": f"per_process_memory_fraction:{share}"}
