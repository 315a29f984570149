"""A server, and the command as a real process beside it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.command import GUERDON, Run, Start, environment
from tests.support.formula_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def run(server: Server) -> Run:
    """Runs `guerdon …` against the server to its end."""

    def run(*args: object, input: bytes = b"", env: dict[str, str] | None = None) -> Any:
        return subprocess.run(
            [*GUERDON, *map(str, args)],
            input=input,
            capture_output=True,
            env=environment(**{"GUERDON_SERVER": server.target, **(env or {})}),
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def start(server: Server) -> Iterator[Start]:
    """Starts `guerdon …` and leaves it running; killed at the end."""
    started: list[subprocess.Popen[bytes]] = []
    # Tests in the background inherit SIGINT as ignored, and children do; a terminal's do not.
    # Not by `preexec_fn`: it makes Python fork, and a child of a process in which gRPC's
    # threads run may then abort before it begins.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*args: object, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*GUERDON, *map(str, args)],
            env=environment(GUERDON_SERVER=server.target),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        started.append(process)
        return process

    yield start
    signal.signal(signal.SIGINT, before)
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
