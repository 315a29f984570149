"""What the contenders' programs share: a command line, and the loop of those without a network."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Listener

from tests.bench.peers.calls import Call, Turn

Batch = Callable[[], list[list[float]]]
"""Computes a batch that is prepared, and gives the scores of its calls."""


def work(port: int, prepare: Callable[[Sequence[Call]], Batch]) -> None:
    """A worker's own process: take calls, time their batches, give the turn back, for ever.

    Args:
        port: where it listens.
        prepare: what a batch needs that is not timed, such as tokenising.
    """
    with Listener(("127.0.0.1", port)) as listener:
        while True:
            with listener.accept() as connection:
                try:
                    asked = json.loads(connection.recv_bytes())
                except EOFError:  # somebody looked whether this port listens
                    continue
                turn = _timed([Call(**c) for c in asked["calls"]], asked["in_flight"], prepare)
                connection.send_bytes(json.dumps(vars(turn)).encode())


def _timed(
    calls: Sequence[Call], in_flight: int, prepare: Callable[[Sequence[Call]], Batch]
) -> Turn:
    parts = [calls[i : i + in_flight] for i in range(0, len(calls), in_flight)]
    batches = [prepare(part) for part in parts]
    scores: list[list[float]] = []
    latencies: list[float] = []
    whole = time.perf_counter()
    for part, batch in zip(parts, batches, strict=True):
        begun = time.perf_counter()
        scores += batch()
        latencies += [time.perf_counter() - begun] * len(part)
    return Turn(time.perf_counter() - whole, latencies, scores)


@dataclass(frozen=True)
class Arguments:
    """A contender's command line."""

    folder: str
    dtype: str
    port: int


def arguments() -> Arguments:
    """What `Contender.command` told this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--port", type=int, required=True)
    return Arguments(**vars(parser.parse_args()))
