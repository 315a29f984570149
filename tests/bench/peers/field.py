"""The contenders of one run, of which one at a time has the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.bench.peers.calls import Call, Turn, flat
from tests.bench.peers.contender import Contender, Failed, Server

Say = Callable[[str], None]
"""Prints a line of progress."""


class Field:
    """Those that run, and why the others don't.

    Args:
        contenders: in the order of the tables; the first is what the others are compared with.
        say: told what happens.
    """

    def __init__(self, contenders: Sequence[Contender], say: Say) -> None:
        self.say = say
        self.out: dict[str, str] = {}
        self.running: list[Contender] = []
        self.all = list(contenders)
        for contender in self.all:
            if reason := contender.missing():
                self.drop(contender, reason)

    @property
    def able(self) -> list[Contender]:
        """Those that nothing is known against."""
        return [contender for contender in self.all if contender.name not in self.out]

    def servers(self, number: int) -> list[Server]:
        """Those in a round that can be asked by several callers."""
        return [each for each in self.in_turn(number) if isinstance(each, Server)]

    def start(self, first: Call) -> None:
        """Start all, each while the others are paused."""
        for contender in self.able:
            with self.guarded(contender):
                seconds = contender.start(first)
                contender.pause()
                self.running.append(contender)
                self.say(f"{contender.label} started in {seconds:.1f} s")

    def stop(self) -> None:
        """End all processes."""
        for contender in self.all:
            contender.stop()
        self.running.clear()

    @contextmanager
    def alone(self, contender: Contender) -> Iterator[None]:
        """Give the cores to one that runs; it leaves the field if it fails."""
        contender.resume()
        with self.guarded(contender):
            yield
        if contender.name not in self.out:
            contender.pause()

    @contextmanager
    def guarded(self, contender: Contender) -> Iterator[None]:
        """Take a contender that fails out of the run, and go on."""
        try:
            yield
        except Failed as error:
            self.drop(contender, str(error))

    def drop(self, contender: Contender, reason: str) -> None:
        """Take a contender out, with a reason for the table.

        Raises:
            Failed: it is the one that the others are compared with.
        """
        self.out[contender.name] = reason
        self.running = [other for other in self.running if other is not contender]
        contender.stop()
        if contender is self.all[0]:
            raise Failed(f"{contender.label}: {reason}")
        self.say(f"{contender.label} is out: {reason}")

    def in_turn(self, number: int) -> list[Contender]:
        """Those that run, every other round the other way round."""
        return self.running[:] if number % 2 == 0 else self.running[::-1]


def difference(scores: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> float:
    """The largest difference of a score; relative where scores are above 1."""
    pairs = zip(flat(scores), flat(expected), strict=True)
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


def check(
    field: Field, calls: Sequence[Call], expected: Turn, tolerance: float
) -> dict[str, float]:
    """Each one's difference from plain `transformers`; who is too far from it is out."""
    found = {}
    for contender in field.in_turn(0):
        if not contender.scores:
            continue
        with field.alone(contender):
            turn = contender.turn(calls, len(calls))
            apart = found[contender.name] = difference(turn.scores, expected.scores)
            field.say(f"{contender.label}: scores within {apart:.1e} of plain transformers")
            if not apart <= tolerance:
                raise Failed(f"wrong scores: {apart:.1e} from plain transformers in float32")
    return found
