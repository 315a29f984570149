"""The real `guerdon serve gateway`, in a process of its own, on free ports.

Settings are given as keywords: `reward=["a:1/m", "b:1/n"]` is `--reward a:1/m --reward b:1/n`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.support.server import RunningServer, flag_list, running_process


def gateway_process(
    *, sampler: str, reward: Sequence[str], **flags: object
) -> AbstractContextManager[RunningServer]:
    """A gateway that takes work; it is killed at the end if it still runs."""

    def command(ready: Path) -> list[str]:
        given = {"port": 0, "http_port": 0, "ready_file": ready, "sampler": sampler, **flags}
        rewards = [word for each in reward for word in flag_list({"reward": each})]
        return [sys.executable, "-m", "guerdon.serving", "gateway", *flag_list(given), *rewards]

    return running_process(command, {})
