"""Load on a real server: an open loop of calls at a given rate, and a probe of its health.

with HealthProbe(server.address) as probe:
    outcome = asyncio.run(offer(server.address, items, rate=200, seconds=5, deadline=1.0))
probe.milliseconds
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guerdon.client import AsyncRewardClient, GuerdonError, Item, Overloaded, Retry

ONCE = Retry(attempts=1, overload_attempts=1)
"""Every refusal is seen."""


@dataclass
class Outcome:
    """How the calls of an open loop ended."""

    codes: Counter[str] = field(default_factory=Counter)
    """`OK`, or the name of the client's error."""
    scores: list[tuple[int, list[float]]] = field(default_factory=list)
    """(place in `items`, scores) of the calls that succeeded."""
    retry_after: list[float] = field(default_factory=list)
    """Seconds that the server told callers to wait who were shed."""
    seconds: float = 0.0

    @property
    def offered(self) -> int:
        """Calls made."""
        return self.codes.total()


async def offer(
    address: str,
    items: Sequence[Item],
    *,
    model: str,
    rate: float,
    seconds: float,
    deadline: float,
) -> Outcome:
    """Make calls at a rate, whatever becomes of them, each with a deadline."""
    outcome = Outcome()
    async with AsyncRewardClient(address, retry=ONCE) as client:
        await client.get_model(model)

        async def call(place: int) -> None:
            try:
                result = await client.score(model, [items[place]], timeout=deadline)
            except Overloaded as error:
                outcome.codes["Overloaded"] += 1
                outcome.retry_after.append(error.retry_after or 0.0)
            except GuerdonError as error:
                outcome.codes[type(error).__name__] += 1
            else:
                outcome.codes["OK"] += 1
                outcome.scores.append((place, result.scores[0]))

        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            made = 0
            while (elapsed := time.monotonic() - begun) < seconds:
                while made < elapsed * rate:
                    group.create_task(call(made % len(items)))
                    made += 1
                await asyncio.sleep(0.002)
        outcome.seconds = time.monotonic() - begun
    return outcome


async def closed_loop(
    address: str, items: Sequence[Item], *, model: str, in_flight: int
) -> tuple[float, list[list[float]]]:
    """Score every item by a call of its own, so many in flight: seconds, and the scores."""
    scores: list[list[float]] = [[] for _ in items]
    waiting = iter(range(len(items)))
    async with AsyncRewardClient(address) as client:
        await client.get_model(model)  # connected

        async def caller() -> None:
            for i in waiting:
                scores[i] = (await client.score(model, [items[i]])).scores[0]

        begun = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return time.perf_counter() - begun, scores


class HealthProbe:
    """Asks for health every 20 ms from a process of its own while the block runs."""

    def __init__(self, address: str) -> None:
        self.milliseconds: list[float] = []
        self._address = address
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> HealthProbe:
        command = [sys.executable, "-m", "tests.support.load", self._address]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "started\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        printed, _ = self._process.communicate("stop\n", timeout=30)
        if kind is None:
            self.milliseconds = json.loads(printed)


def _probe(address: str) -> None:
    """The probe's own process: until a line comes in, ask; then print what it took."""
    import select

    milliseconds: list[float] = []
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        print("started", flush=True)
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            begun = time.perf_counter()
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            milliseconds.append((time.perf_counter() - begun) * 1000)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    print(json.dumps(milliseconds))


def metrics(url: str) -> dict[str, float]:
    """Every sample of `/metrics`, by name with its labels as they are printed."""
    text = httpx.get(f"{url}/metrics").raise_for_status().text
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def total(samples: dict[str, float], name: str, *labels: str) -> float:
    """The sum of a metric's samples that carry all of these labels (`key="value"`)."""
    return sum(
        value
        for key, value in samples.items()
        if key.split("{")[0] == name and all(label in key for label in labels)
    )


def resident_bytes(pid: int) -> int:
    """A process's resident memory (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


if __name__ == "__main__":
    _probe(sys.argv[1])
