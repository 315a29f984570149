"""What the dispatcher has accepted: the room of a request, and its items as they come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from guerdon.reward.scheduling.admission import Ticket
from guerdon.reward.scheduling.events import DropReason
from guerdon.reward.scheduling.worker import Job
from guerdon.reward.types import ResponseScore


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The scores of one item, and where its time went."""

    scores: list[ResponseScore]
    queue_seconds: float
    """Waiting for a batch, from `score` on."""
    compute_seconds: float
    """In the engine: the whole time of each batch that held some of it."""


class Reservation:
    """Room for one request, from `Dispatcher.reserve`; leaving the context gives it back.

    What has been handed to the engine keeps its room until the engine is done with it.
    """

    def __init__(self, ticket: Ticket, close: Callable[[Reservation], None]) -> None:
        self._ticket = ticket
        self._close = close
        self._used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the room back, unless it was used. Closing twice does nothing."""
        self._close(self)


@dataclass(slots=True)
class Item:
    """One item of a call, as its parts come back."""

    scores: list[ResponseScore | None]
    left: int
    """Responses of which nothing has been heard."""
    compute_seconds: float = 0.0
    finished: float = 0.0
    unfinished: bool = False
    """Whether some of it was dropped from the queue."""


@dataclass(slots=True, eq=False)
class Call:
    """One `score` whose work has not ended, whether or not somebody still waits for it."""

    job: Job
    ticket: Ticket
    future: asyncio.Future[list[ItemResult]]
    items: list[Item]
    left: int
    """Items that have not ended."""
    reason: DropReason | None = None
    """Why nobody waits for it any more."""


def result_of(item: Item, arrival: float) -> ItemResult:
    """What its caller gets of an item that has ended with all its scores."""
    scores = [score for score in item.scores if score is not None]
    assert len(scores) == len(item.scores), "a response without a score was called done"
    queued = max(0.0, item.finished - arrival - item.compute_seconds)
    return ItemResult(scores, queued, item.compute_seconds)
