"""The real `guerdon serve reward`, in a process of its own, on free ports.

    with running_server({"m": folder}, dtype="float32") as server:
        channel = grpc.insecure_channel(server.address)

    with running_server({"m": folder}, forked=False) as server:  # the command, from its beginning

Flags are given as keywords: `max_queue_tokens=1000` is `--max-queue-tokens 1000`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.forked import Child, serve_reward

START_SECONDS = 120.0
ROOT = Path(__file__).parents[2]
SERVE_REWARD = (sys.executable, "-m", "guerdon.serving", "reward")


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server, of rewards or a sampler, that takes work."""

    process: subprocess.Popen[bytes] | Child
    port: int
    http_port: int
    admin_port: int
    log_file: Path

    @property
    def address(self) -> str:
        """Of the main service."""
        return f"127.0.0.1:{self.port}"

    @property
    def admin_address(self) -> str:
        """Of ModelAdminService."""
        return f"127.0.0.1:{self.admin_port}"

    @property
    def url(self) -> str:
        """Of the HTTP side."""
        return f"http://127.0.0.1:{self.http_port}"

    def log(self) -> str:
        """What it has written to standard output and error so far."""
        return self.log_file.read_text(errors="replace")

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, as a machine that loses power."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_server(
    models: Mapping[str, str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    forked: bool = True,
    **flags: object,
) -> Iterator[RunningServer]:
    """Start it, wait until it is ready, kill it at the end if it still runs.

    Args:
        environment: variables that it has beside this process's.
        forked: from a process that has loaded torch; for tests of how a process begins and ends
            it is the command itself, which takes seconds.

    Raises:
        RuntimeError: it left before it was ready; the text is its log.
    """

    def command(ready: Path) -> list[str]:
        return serve_command(models, ready_file=ready, **flags)

    def fork(ready: Path, log: Path) -> Child:
        arguments = command(ready)[len(SERVE_REWARD) :]
        return Child(log, serve_reward, *arguments, environment=environment)

    running = _running(fork) if forked else running_process(command, environment or {})
    with running as server:
        yield server


def running_process(
    command: Callable[[Path], list[str]],
    environment: Mapping[str, str],
    seconds: float = START_SECONDS,
) -> contextlib.AbstractContextManager[RunningServer]:
    """A server's process that takes work; it is killed at the end if it still runs.

    Args:
        command: makes the command line, given the ready file.
    """

    def start(ready: Path, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as handle:
            return subprocess.Popen(
                command(ready),
                stdout=handle,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                cwd=ROOT,
            )

    return _running(start, seconds)


@contextlib.contextmanager
def _running(
    start: Callable[[Path, Path], subprocess.Popen[bytes] | Child], seconds: float = START_SECONDS
) -> Iterator[RunningServer]:
    with tempfile.TemporaryDirectory() as scratch:
        ready, log = Path(scratch) / "ready.json", Path(scratch) / "server.log"
        process = start(ready, log)
        try:
            ports = _wait(process, ready, log, seconds)
            yield RunningServer(
                process=process,
                port=ports["port"] or 0,
                http_port=ports["http_port"] or 0,
                admin_port=ports.get("admin_port") or 0,
                log_file=log,
            )
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def serve_command(models: Mapping[str, str | Path], **flags: object) -> list[str]:
    """The command line, on free ports unless the flags say otherwise."""
    command = [*SERVE_REWARD]
    for name, folder in models.items():
        command += ["--model", f"{name}={folder}"]
    return command + flag_list({"port": 0, "http_port": 0, "admin_port": 0, **flags})


def flag_list(flags: Mapping[str, object]) -> list[str]:
    """Flags as a command line has them; what is True is a switch."""
    found = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        found += [flag] if value is True else [flag, str(value)]
    return found


def _wait(
    process: subprocess.Popen[bytes] | Child, ready: Path, log: Path, seconds: float
) -> dict[str, int | None]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready.exists():
            ports: dict[str, int | None] = json.loads(ready.read_text())
            return ports
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')}")
