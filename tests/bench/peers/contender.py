"""What a contender is: processes that score calls, and how they are asked.

A `Server` is asked over a socket, by as many callers as are wanted; a `Worker` is handed all calls
at once and times itself.
"""

from __future__ import annotations

import abc
import asyncio
import importlib.util
import json
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from typing import ClassVar, Protocol

from tests.bench.peers.calls import Call, Turn
from tests.bench.peers.processes import Processes
from tests.support.ports import free_port

START_SECONDS = 600.0
SHORT_SPIN, LONG_SPIN = "10000", "300000"
"""GOMP_SPINCOUNT: what `guerdon serve reward` sets for itself, and GNU OpenMP's own default."""
KEEPING_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""glibc keeps what is freed for what is allocated next, as this server's engines tell it to."""


@dataclass(frozen=True)
class Setup:
    """What is the same for all contenders."""

    folder: Path
    dtype: str
    threads: int


class Failed(Exception):
    """A contender could not start or answer; the text says why."""


class Contender(abc.ABC):
    """One side of the comparison, in processes of its own."""

    name: ClassVar[str]
    """As `--contenders` has it."""
    label: ClassVar[str]
    """As tables have it."""
    module: ClassVar[str]
    """What `python -m` runs."""
    package: ClassVar[str] = ""
    """What must be importable."""
    install: ClassVar[str] = ""
    """How it gets so."""
    scores: ClassVar[bool] = True
    """Whether it answers with scores."""
    spin: ClassVar[str] = SHORT_SPIN

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.port = 0
        self.processes: Processes | None = None
        self.computed_tokens: int | None = None
        """Of all answers so far; None where answers don't tell."""

    def missing(self) -> str:
        """How to install what it lacks, or nothing."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"not installed: {self.install}"
        return ""

    def start(self, first: Call) -> float:
        """Seconds until the first call is answered.

        Raises:
            Failed: it never was.
        """
        begun = time.perf_counter()
        self.port = free_port()
        threads = {"OMP_NUM_THREADS": str(self.setup.threads), "GOMP_SPINCOUNT": self.spin}
        variables = {**threads, **KEEPING_MEMORY, **self.environment()}
        self.processes = Processes(self.command(), variables)
        while not self.ready():
            if not self.processes.alive or time.perf_counter() - begun > START_SECONDS:
                raise Failed(f"did not start:\n{self.processes.log()}")
            time.sleep(0.02)
        self.turn([first], 1)
        return time.perf_counter() - begun

    def command(self) -> list[str]:
        """Its command line."""
        setup = self.setup
        own = ["--dtype", setup.dtype, "--port", str(self.port)]
        return [sys.executable, "-m", self.module, str(setup.folder), *own]

    def environment(self) -> dict[str, str]:
        """Environment variables that it needs beyond the threads."""
        return {}

    def ready(self) -> bool:
        """Whether it listens."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    @abc.abstractmethod
    def turn(self, calls: Sequence[Call], in_flight: int) -> Turn:
        """Score all calls, so many at a time.

        Raises:
            Failed: a call was not answered.
        """

    def score_file(self, path: Path, in_flight: int) -> float:
        """Seconds for a file of calls, one as JSON in each line."""
        begun = time.perf_counter()
        self.turn([Call(**json.loads(line)) for line in path.open()], in_flight)
        return time.perf_counter() - begun

    def pause(self) -> None:
        """Take its CPUs away."""
        if self.processes is not None:
            self.processes.pause()

    def resume(self) -> None:
        """Let it go on."""
        if self.processes is not None:
            self.processes.resume()

    def memory(self) -> int:
        """Resident bytes of its processes."""
        return 0 if self.processes is None else self.processes.memory()

    def stop(self) -> None:
        """End its processes, if there are any."""
        if self.processes is not None:
            self.processes.end()
            self.processes = None


# Servers


class Ask(Protocol):
    """One call of a server."""

    async def __call__(
        self, call: Call, *, deadline: float | None = None, online: bool = True
    ) -> list[float]:
        """The scores of the responses.

        Raises:
            Failed: there was no answer, or none within `deadline` seconds.
        """
        ...


class Server(Contender):
    """A contender that is asked over a socket."""

    @abc.abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Ask]:
        """A connected client."""

    def turn(self, calls: Sequence[Call], in_flight: int) -> Turn:
        """A closed loop: as many callers as are in flight, each with its next call at once."""
        return asyncio.run(self._closed_loop(calls, in_flight))

    async def _closed_loop(self, calls: Sequence[Call], in_flight: int) -> Turn:
        scores: list[list[float]] = [[] for _ in calls]
        latencies = [0.0] * len(calls)
        waiting = iter(range(len(calls)))
        async with self.connect() as ask:

            async def caller() -> None:
                for i in waiting:
                    begun = time.perf_counter()
                    scores[i] = await ask(calls[i])
                    latencies[i] = time.perf_counter() - begun

            begun = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(in_flight)))
            return Turn(time.perf_counter() - begun, latencies, scores)


# Workers


class Worker(Contender):
    """A contender without a network: it is handed all calls and times itself."""

    spin = LONG_SPIN  # nothing else wants its cores

    def turn(self, calls: Sequence[Call], in_flight: int) -> Turn:
        """Batches of as many calls as the servers have in flight."""
        try:
            with Client(("127.0.0.1", self.port)) as connection:
                asked = {"calls": [vars(call) for call in calls], "in_flight": in_flight}
                connection.send_bytes(json.dumps(asked).encode())
                return Turn(**json.loads(connection.recv_bytes()))
        except (OSError, EOFError) as error:
            raise Failed(f"{self.name} died:\n{self.processes and self.processes.log()}") from error
