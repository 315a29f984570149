"""Cuts a large call into requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guerdon.client import _wire
from guerdon.client.config import Limits
from guerdon.client.types import Item


@dataclass(frozen=True, slots=True)
class Slice:
    """Responses `start` to `stop` of item `index`."""

    index: int
    start: int
    stop: int


@dataclass(slots=True)
class _Open:
    """The request that is being filled."""

    slices: list[Slice]
    size: int = 0
    responses: int = 0

    def fits(self, size: int, responses: int, limits: Limits) -> bool:
        return (
            self.size + size <= limits.max_bytes
            and self.responses + responses <= limits.max_responses
        )

    def add(self, piece: Slice, size: int) -> None:
        self.slices.append(piece)
        self.size += size
        self.responses += piece.stop - piece.start


def cut(items: Sequence[Item], limits: Limits) -> list[list[Slice]]:
    """The requests, each a list of slices, in the order of the items.

    An item stays whole where it fits a request of its own, so that its prompt is computed
    once; one that does not is cut between responses.

    Raises:
        InvalidArgument: a text is not valid Unicode.
    """
    parts: list[list[Slice]] = []
    current = _Open([])
    for index, item in enumerate(items):
        for piece, size in _pieces(index, item, limits):
            if current.slices and not current.fits(size, piece.stop - piece.start, limits):
                parts.append(current.slices)
                current = _Open([])
            current.add(piece, size)
    if current.slices:
        parts.append(current.slices)
    return parts


def _pieces(index: int, item: Item, limits: Limits) -> Iterator[tuple[Slice, int]]:
    """The item whole, or in as few pieces as the limits allow."""
    where = f"items[{index}]"
    head = _wire.prompt_bytes(item.prompt, f"{where}.prompt") + len(item.id) * 4 + 32
    start, size = 0, head
    for place, response in enumerate(item.responses):
        more = _wire.response_bytes(response, f"{where}.responses[{place}]")
        full = size + more > limits.max_bytes or place - start >= limits.max_responses
        if full and place > start:
            yield Slice(index, start, place), size
            start, size = place, head
        size += more
    yield Slice(index, start, len(item.responses)), size
