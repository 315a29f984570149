"""How the contenders are asked, and how long they take."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.bench.common import median
from tests.bench.peers.calls import Call, Turn
from tests.bench.peers.contender import Contender, Failed, Server
from tests.bench.peers.field import Field, difference
from tests.bench.peers.texts import Group, conversations, group_call, rankings, real_calls

IN_FLIGHT = (1, 8, 64)
BUSY = 64
LOADS = (0.5, 0.7, 0.9, 2.0)
PATIENT_SECONDS = 600.0
"""Time of a call that nobody is in a hurry for."""
WARM_UP = 4
LONE_CALLS = 16
DEADLINE = 20
"""Seconds that a call of an open loop may take, in times of a lone call on this server."""


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    rounds: int
    texts: int
    seconds: float
    sequences: int
    group: Group
    answers: int


# (a) and (b): closed loops


@dataclass(frozen=True)
class Case:
    """Calls with so many in flight, new ones each round."""

    label: str
    in_flight: int
    calls: Callable[[int], list[Call]]


@dataclass
class Turns:
    """What became of a case: each contender's turns, round by round."""

    case: Case
    of: dict[str, list[Turn]] = field(default_factory=dict)

    def ratios(self, name: str, first: str) -> list[float]:
        """How many times as long as the first one a contender took, round by round."""
        return [a.seconds / b.seconds for a, b in zip(self.of[name], self.of[first], strict=True)]


def cases(plan: Plan, workloads: Sequence[str]) -> list[Case]:
    """The closed loops among the workloads."""

    def single(in_flight: int) -> Case:
        def calls(number: int) -> list[Call]:
            return real_calls(plan.texts, f"{in_flight}.{number}")

        return Case(f"{in_flight} in flight", in_flight, calls)

    found = [single(in_flight) for in_flight in IN_FLIGHT] if "a" in workloads else []
    if "b" in workloads:
        found.append(Case(str(plan.group), 1, lambda number: [group_call(plan.group, number)]))
    return found


def closed_loops(field: Field, plan: Plan, asked: Sequence[Case], tolerance: float) -> list[Turns]:
    """All cases in each round, in each case all contenders by turns."""
    found = [Turns(case) for case in asked]
    for number in range(plan.rounds):
        for turns in found:
            calls = turns.case.calls(number)
            taken = {}
            for contender in field.in_turn(number):
                with field.alone(contender):
                    warm_up(contender, f"{turns.case.label}.{number}")
                    taken[contender.name] = contender.turn(calls, turns.case.in_flight)
            _agree(field, taken, tolerance)
            for name, turn in taken.items():
                turns.of.setdefault(name, []).append(turn)
            seconds = ", ".join(f"{name} {turn.seconds:.2f} s" for name, turn in taken.items())
            field.say(f"round {number + 1} of {plan.rounds}, {turns.case.label}: {seconds}")
    for turns in found:  # who failed or was wrong later was not fast before
        turns.of = {name: rounds for name, rounds in turns.of.items() if name not in field.out}
    return found


def warm_up(contender: Contender, salt: str) -> None:
    """A few calls that aren't timed; they also wait for what was left in a queue."""
    contender.turn(real_calls(WARM_UP, f"warm {salt}"), WARM_UP)


def _agree(field: Field, taken: dict[str, Turn], tolerance: float) -> None:
    """Take out whose timed scores are not the first one's."""
    first = field.all[0].name
    for contender in field.in_turn(0):
        if not (contender.scores and first in taken and contender.name in taken):
            continue
        apart = difference(taken[contender.name].scores, taken[first].scores)
        if not apart <= 2 * tolerance:  # either may be so far from the truth
            field.drop(contender, f"wrong scores while it was timed: {apart:.1e} from {first}'s")


# (c): an open loop


@dataclass(frozen=True)
class Load:
    """What became of calls that came at a given rate.

    Args:
        share: of the contender's own capacity that was offered.
        goodput: calls answered in time per second, as a share of that capacity.
        latencies: seconds of the answered calls.
    """

    share: float
    goodput: float
    latencies: list[float]


def open_loops(field: Field, plan: Plan) -> dict[str, list[Load]]:
    """Each server's rounds of each load, with one deadline for all."""
    found: dict[str, list[Load]] = {}
    deadline = 0.0
    for number in range(plan.rounds):
        for server in field.servers(number):
            with field.alone(server):
                warm_up(server, f"open {number}")
                if not deadline:
                    lone = server.turn(real_calls(LONE_CALLS, "lone"), 1)
                    deadline = DEADLINE * median(lone.latencies)
                    field.say(f"open loops: each call's deadline is {deadline:.2f} s")
                capacity = (
                    plan.texts / server.turn(real_calls(plan.texts, f"c{number}"), BUSY).seconds
                )
                for share in LOADS:
                    offered = max(1, round(share * capacity * plan.seconds))
                    calls = real_calls(offered, f"{share}.{number}")
                    latencies, taken = asyncio.run(
                        open_loop(server, calls, plan.seconds, deadline, number)
                    )
                    goodput = len(latencies) / taken / capacity
                    found.setdefault(server.name, []).append(Load(share, goodput, latencies))
                    field.say(
                        f"round {number + 1} of {plan.rounds}, {share:.0%} of {server.name}'s "
                        f"{capacity:.1f} calls/s: {len(latencies)} of {offered} answered in time"
                    )
                    warm_up(server, f"{share}.{number}")
    return found


async def open_loop(
    server: Server, calls: Sequence[Call], seconds: float, deadline: float, seed: int
) -> tuple[list[float], float]:
    """Calls that come at random within so many seconds, whatever becomes of the others.

    Returns:
        Seconds of each call that was answered in time, and until the last of them was.
    """
    due = np.sort(np.random.default_rng(seed).uniform(0, seconds, len(calls)))
    latencies: list[float] = []
    last = seconds
    async with server.connect() as ask, asyncio.TaskGroup() as group:
        begun = time.perf_counter()

        async def one(call: Call) -> None:
            nonlocal last
            asked = time.perf_counter()
            try:
                await ask(call, deadline=deadline)
            except Failed:
                return
            now = time.perf_counter()
            if now - asked <= deadline:
                latencies.append(now - asked)
                last = max(last, now - begun)

        for call, moment in zip(calls, due, strict=True):
            await asyncio.sleep(max(0.0, begun + moment - time.perf_counter()))
            group.create_task(one(call))
    return latencies, last


# (d): ONLINE beside BATCH

ONLINE_LOAD = 0.1


@dataclass(frozen=True)
class Beside:
    """How online calls at a tenth of a server's capacity and bulk work share it.

    Args:
        alone: seconds of each online call on the server that does nothing else.
        online: seconds of each online call beside bulk work, at the same moments.
        batch: rate of the bulk work beside them, as a share of its rate alone.
    """

    alone: list[float]
    online: list[float]
    batch: float


def beside_batch(field: Field, plan: Plan) -> dict[str, list[Beside]]:
    """Each server's rounds."""
    found: dict[str, list[Beside]] = {}
    for number in range(plan.rounds):
        for server in field.servers(number):
            with field.alone(server):
                warm_up(server, f"beside {number}")
                bulk = server.turn(real_calls(plan.texts, f"d{number}"), BUSY)
                capacity = plan.texts / bulk.seconds
                count = max(1, round(ONLINE_LOAD * capacity * plan.seconds / plan.answers))
                lone, online = (
                    rankings(count, plan.answers, f"{kind} d{number}") for kind in ("lone", "on")
                )
                alone, _ = asyncio.run(
                    open_loop(server, lone, plan.seconds, PATIENT_SECONDS, number)
                )
                beside, rate = asyncio.run(_together(server, online, plan.seconds, number))
                found.setdefault(server.name, []).append(Beside(alone, beside, rate / capacity))
                field.say(
                    f"round {number + 1} of {plan.rounds}, {count} calls online beside batch: "
                    f"{server.name} {1000 * median(beside):.0f} ms, "
                    f"{1000 * median(alone):.0f} ms alone; batch {rate / capacity:.2f}"
                )
    return found


async def _together(
    server: Server, calls: Sequence[Call], seconds: float, number: int
) -> tuple[list[float], float]:
    """Seconds of each online call, and bulk calls per second that were answered meanwhile."""
    done = 0
    bulk = conversations(f"bulk d{number}")
    over = False
    async with server.connect() as ask:

        async def batch_caller() -> None:
            nonlocal done
            while not over:
                await ask(next(bulk), online=False)
                done += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(BUSY):
                group.create_task(batch_caller())
            latencies, taken = await open_loop(server, calls, seconds, PATIENT_SECONDS, number)
            rate, over = done / taken, True
    return latencies, rate


# (g): answers to the same prompts, one by one


@dataclass(frozen=True)
class Arrived:
    """What became of single calls that came at random.

    Args:
        seconds: from the first call until all were answered.
        computed: tokens computed, as a share of what grouped calls need; None where it isn't told.
    """

    seconds: float
    computed: float | None


ARRIVING = Group(8, 60, 400)
PROMPTS, ARRIVING_SECONDS = 8, 5.0
ARRIVING_SEED = 10_000
"""So that its tokens are not those of (b) or of the check."""


def one_by_one(field: Field, plan: Plan) -> dict[str, list[Arrived]]:
    """Each server's rounds."""
    found: dict[str, list[Arrived]] = {}
    grouped = PROMPTS * (ARRIVING.prompt + ARRIVING.responses * ARRIVING.tokens)
    for number in range(plan.rounds):
        seed = ARRIVING_SEED + PROMPTS * number
        groups = [group_call(ARRIVING, seed + i) for i in range(PROMPTS)]
        calls = [Call(each.prompt, [answer]) for each in groups for answer in each.responses]
        np.random.default_rng(number).shuffle(calls)
        for server in field.servers(number):
            with field.alone(server):
                warm_up(server, f"g{number}")
                before = server.computed_tokens
                latencies, seconds = asyncio.run(
                    open_loop(server, calls, ARRIVING_SECONDS, PATIENT_SECONDS, number)
                )
                if len(latencies) != len(calls):
                    raise Failed(f"{len(calls) - len(latencies)} calls were not answered")
                computed = None
                if before is not None and server.computed_tokens is not None:
                    computed = (server.computed_tokens - before) / grouped
                found.setdefault(server.name, []).append(Arrived(seconds, computed))
                field.say(
                    f"round {number + 1} of {plan.rounds}, answers one by one: {server.name} "
                    f"{seconds:.2f} s"
                )
    return found


# (e): a file


def from_file(field: Field, plan: Plan) -> dict[str, float]:
    """Each one's seconds for a file of sequences, once."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "calls.jsonl"
        with path.open("w") as lines:
            for call in real_calls(plan.sequences, "file"):
                lines.write(json.dumps(vars(call)) + "\n")
        for contender in field.in_turn(0):
            with field.alone(contender):
                warm_up(contender, "file")
                found[contender.name] = contender.score_file(path, BUSY)
                field.say(
                    f"{plan.sequences} sequences from a file: {contender.name} "
                    f"{found[contender.name]:.1f} s"
                )
    return found


# (f): starting


@dataclass(frozen=True)
class Start:
    """Seconds from nothing to the first answer, and resident bytes after 64 calls in flight."""

    seconds: float
    memory: int


def starts(field: Field, plan: Plan) -> dict[str, list[Start]]:
    """Each one that scores, started alone in each round."""
    found: dict[str, list[Start]] = {}
    first, *busy = real_calls(BUSY + 1, "start")
    for number in range(plan.rounds):
        for contender in field.able[:: 1 if number % 2 == 0 else -1]:
            if not contender.scores:
                continue
            with field.guarded(contender):
                seconds = contender.start(first)
                contender.turn(busy, BUSY)
                start = Start(seconds, contender.memory())
                found.setdefault(contender.name, []).append(start)
                field.say(
                    f"round {number + 1} of {plan.rounds}, start: {contender.name} "
                    f"{seconds:.1f} s, {start.memory >> 20} MiB"
                )
            contender.stop()
    return found
