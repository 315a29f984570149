"""Saves a checkpoint and is killed at each thing that it does to the disk, by turns.

    python -m tests.recipes.killed_saves FOLDER

For every n there is FOLDER/<n>, where a first checkpoint was saved, and a second one was cut
short by SIGKILL just before the save's n-th call that writes. Prints how many there were.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from guerdon.trainer.rl.checkpoint import Checkpoints

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def parts(step: int) -> dict[str, Any]:
    """The state of a step."""
    weights = torch.full((4, 4), float(step))
    return {"learner": {"weights": weights, "steps": step}, "order": {"place": [step, step]}}


def save(folder: Path, step: int) -> None:
    Checkpoints(folder, keep=1).save(step, parts(step))


def writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":  # path, mode, flags
        flags = arguments[2]
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in EVENTS


def killed_at(folder: Path, n: int) -> bool:
    """Save step 2 in a process that ends at its n-th writing call; whether it was killed."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = n

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if writes(event, arguments):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save(folder, 2)
    os._exit(0)


def main() -> None:
    base, n = Path(sys.argv[1]), 0
    while True:
        folder = base / str(n)
        save(folder, 1)
        if not killed_at(folder, n):
            break
        n += 1
    print(n)


if __name__ == "__main__":
    main()
