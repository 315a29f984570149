"""Calls as they pass from the event loop to the engine threads and come back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from guerdon.reward.scheduling.admission import Ticket
from guerdon.reward.scheduling.events import DropReason
from guerdon.reward.scheduling.units import Unit
from guerdon.reward.types import EncodedItem, ResponseScore, RewardModel


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The scores of one item, and where its time went."""

    scores: list[ResponseScore]
    queue_seconds: float
    """Seconds of waiting for a batch, from `score` on, and of standing aside in one."""
    compute_seconds: float
    """Seconds in the engine: the whole time of each batch that held some of it."""


class DispatchedCall:
    """One `score` whose work has not ended, whether or not somebody still waits for it.

    Args:
        key: names the model's revision.
        model: computes the items.
        items: of the request.
        ticket: holds the room for them.
        arrival: when they came.
        future: gets their results.
    """

    def __init__(
        self,
        key: str,
        model: RewardModel,
        items: Sequence[EncodedItem],
        ticket: Ticket,
        arrival: float,
        future: asyncio.Future[list[ItemResult]],
    ) -> None:
        self.key = key
        self.model = model
        self.ticket = ticket
        self.caller = ticket.account.caller
        self.arrival = arrival
        self.future = future
        self.items = [DispatchedItem(self, item) for item in items]
        self.left = len(items)
        """Items that have not ended."""
        self.abandoned = False
        """Set on the event loop when nobody waits any more, and read by engine threads before
        each batch."""
        self.reason: DropReason | None = None
        """Why nobody waits for it any more."""


class DispatchedItem:
    """One item of a call, as its parts come back."""

    def __init__(self, call: DispatchedCall, encoded: EncodedItem) -> None:
        self.call = call
        self.encoded = encoded
        self.scores: list[ResponseScore | None] = [None] * encoded.sequences
        self.left = encoded.sequences
        """Responses of which the event loop has heard nothing."""
        self.compute_seconds = 0.0
        self.finished = 0.0
        self.unfinished = False
        """Whether some of it was dropped from the queue."""
        self.unit: Unit[DispatchedItem] | None = None
        self.unreported = encoded.sequences
        """Responses that have not been reported. Only engine threads touch this and `unit`,
        under the worker's lock."""

    def result(self) -> ItemResult:
        """The result of an item that has ended with all its scores."""
        scores = [score for score in self.scores if score is not None]
        assert len(scores) == len(self.scores), "a response without a score was called done"
        queued = max(0.0, self.finished - self.call.arrival - self.compute_seconds)
        return ItemResult(scores, queued, self.compute_seconds)
