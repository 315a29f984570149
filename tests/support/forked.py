"""Processes of our own commands, which can be killed: each starts in a fraction of a second.

They are forked from one fork server that has loaded torch (`tests.support.loaded`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.loaded"])


def serve_reward(*arguments: str) -> int:
    """`guerdon serve reward`."""
    from guerdon.serving.cli import app

    app(["reward", *arguments], prog_name="guerdon serve")
    return 0


def rank_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher such as torchrun tells one of several processes on this machine.

    Args:
        rank: which one it is.
        count: of the processes.
        port: where they meet.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _child(
    log: str, environment: dict[str, str], function: Callable[..., int], *arguments: Any
) -> None:
    import torch

    with Path(log).open("ab") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    code = 1
    try:
        code = function(*arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Child:
    """A process that was started.

    Args:
        log: what it prints is added to this file.
        function: of a module.
        arguments: of the function.
        environment: variables that it has beside this process's.
    """

    def __init__(
        self,
        log: Path,
        function: Callable[..., int],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log_file = log
        variables = {**os.environ, **(environment or {})}
        self._process = _context.Process(
            target=_child, args=(str(log), variables, function, *arguments)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def killed(self) -> bool:
        """Whether it was ended by SIGKILL."""
        return self._process.exitcode == -signal.SIGKILL

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Does nothing where it has ended."""
        if self.running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        # Not `join`: it reads the exit code, which only one thread may (the other is told 255).
        connection.wait([self._process.sentinel])

    def freeze(self) -> None:
        """SIGSTOP: it takes connections and calls (the system does), and answers none."""
        self.send_signal(signal.SIGSTOP)

    def wait(self, timeout: float = 120.0) -> int:
        """Wait for its end; the exit code."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it still runs:\n{self.log()}"
        return self._process.exitcode

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
