"""Which tokens of waiting work an engine need not compute, as far as can be foreseen. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from guerdon.reward.types import EncodedItem, TokenArray

BLOCK = 16
"""Beginnings are known by whole blocks of so many tokens, as in the prefix cache."""


def beginnings(item: EncodedItem) -> tuple[int, ...]:
    """Hashes of an item's first block, its first two blocks, and so on.

    They are those of its prefix, or of its sequence if it has one alone, up to where the model
    reads from it: that is always computed. Since a batch is only planned by them, it does not
    matter that two beginnings may have one hash.
    """
    tokens = item.prefix
    if item.sequences == 1:
        tokens = np.concatenate([item.prefix, item.suffixes[0][:-1]])
    places = (int(places.min()) for places in item.readout if len(places))
    first_read = min(places, default=len(tokens) + 1) - 1  # or the token after, by the model
    return tuple(_hashes(tokens[: max(0, first_read)]))


def _hashes(tokens: TokenArray) -> Iterator[int]:
    before = 0
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        before = hash((before, tokens[start : start + BLOCK].tobytes()))
        yield before


class KnownBeginnings:
    """Beginnings of one model that went to one engine, which has a prefix cache for it.

    The engine finds them in the cache, or in the batch that it lays out. What was handed out
    longest ago is forgotten, as in the cache.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, None] = OrderedDict()
        """Handed out longest ago first, and each after those that it is a beginning of."""

    def begin_batch(self, cache_tokens: int) -> None:
        """Forget what a cache of so many tokens can't hold."""
        while len(self._known) * BLOCK > cache_tokens:
            self._known.popitem(last=False)

    def tokens(self, hashes: Sequence[int]) -> int:
        """Tokens of an item with such beginnings that the engine need not compute."""
        count = next((n for n, each in enumerate(hashes) if each not in self._known), len(hashes))
        return BLOCK * count

    def add(self, hashes: Sequence[int]) -> None:
        """Note that an item with such beginnings went to the engine."""
        for each in reversed(hashes):
            self._known[each] = None
            self._known.move_to_end(each)
