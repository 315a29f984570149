"""Keys and values of beginnings that come again: system prompts, prompts, growing answers.

A sequence is cut into blocks of `BLOCK` tokens. A block is known by its tokens and by the block
before it, so that equal beginnings are found whatever they belong to, and nothing is found by a
hash alone. What was used longest ago makes room. A cache belongs to one engine, and so to one
revision: weights that change take their cache with them.

A batch may be computed between the layers of another one (`guerdon.reward.engine.preemption`): it
takes no block from it, and finds none that it has not finished.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from guerdon.reward.types import TokenArray

BLOCK = 16
"""Tokens in a block."""
MAX_BLOCKS = 8192
"""Most blocks of a cache, however little memory each takes: 131,072 tokens."""


_Key = tuple[int, bytes]
"""Serial number of the block before, 0 for none, and a block's token ids."""


@dataclass(slots=True, eq=False)
class CachedBlock:
    """`BLOCK` tokens of a sequence, with all that comes before them."""

    key: _Key
    number: int
    """The block's place in the memory."""
    serial: int
    """Never given twice: no block is taken to follow one that has made room."""
    batch: int
    """The batch that used it last."""
    computed: bool = False
    """Whether its keys and values are there, of all layers."""


class PrefixCache:
    """Keys and values of every layer, for the blocks that were used last. One thread at a time.

    Args:
        memory: bytes that it may take.
        token_bytes: bytes of one token's keys and values, all layers together.
    """

    def __init__(self, memory: int, token_bytes: int) -> None:
        self.blocks = min(MAX_BLOCKS, memory // (BLOCK * token_bytes))
        self._known: OrderedDict[_Key, CachedBlock] = OrderedDict()
        """Used longest ago first; between batches a block comes after those that follow it."""
        self._free: list[int] = []
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Keys and values of each layer, [blocks * BLOCK, heads, size]."""
        self._serial = 0
        self._batch = 0
        """The batch that was begun last."""
        self._computing: dict[int, list[CachedBlock]] = {}
        """Batches that are computed, each one between the layers of the one before it, and the
        blocks that are new in them."""
        self.clear()

    @property
    def tokens(self) -> int:
        """Most tokens that it holds."""
        return self.blocks * BLOCK

    def clear(self) -> None:
        """Forget all blocks; no batch is computed meanwhile."""
        self._known.clear()
        self._free = list(reversed(range(self.blocks)))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Hold what a batch uses until it is computed, or forget its new blocks where it fails."""
        self._batch += 1
        number, new = self._batch, list[CachedBlock]()
        self._computing[number] = new
        try:
            yield
        except BaseException:
            for block in new:
                del self._known[block.key]
                self._free.append(block.number)
            raise
        else:
            for block in new:
                block.computed = True
        finally:
            del self._computing[number]

    def find(self, tokens: TokenArray, after: list[CachedBlock]) -> list[CachedBlock]:
        """The blocks of a sequence's beginning, as far as they are held.

        Args:
            tokens: the sequence up to where blocks are wanted.
            after: its first blocks, which are found already.
        """
        found = list(after)
        for key in self._following(tokens, found):
            block = self._use(key)
            if block is None:
                break
            found.append(block)
        return found

    def keep(
        self, tokens: TokenArray, after: list[CachedBlock]
    ) -> tuple[list[CachedBlock], list[tuple[int, int]]]:
        """Hold a sequence's whole blocks, as far as there is room; arguments as for `find`.

        Returns:
            All of them; and where each one that is new begins in the sequence, and its number.
        """
        held = list(after)
        new: list[tuple[int, int]] = []
        for key in self._following(tokens, held):
            block = self._use(key)
            if block is None:
                number = None if key in self._known else self._room()
                if number is None:
                    break
                self._serial += 1
                block = self._known[key] = CachedBlock(key, number, self._serial, self._batch)
                self._computing[self._batch].append(block)
                new.append((len(held) * BLOCK, number))
            held.append(block)
        return held, new

    def end_batch(self, blocks: Iterable[CachedBlock]) -> None:
        """Let these make room in this order, after all that were used before."""
        for block in blocks:
            self._known.move_to_end(block.key)

    def _following(self, tokens: TokenArray, blocks: list[CachedBlock]) -> Iterator[_Key]:
        """The keys of the blocks after those in the list, which grows meanwhile."""
        for start in range(len(blocks) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
            before = blocks[-1].serial if blocks else 0
            yield before, tokens[start : start + BLOCK].tobytes()

    def _use(self, key: _Key) -> CachedBlock | None:
        """The block of a key, if it is computed by now or by this batch."""
        block = self._known.get(key)
        if block is None or not (block.computed or block.batch == self._batch):
            return None
        block.batch = self._batch
        self._known.move_to_end(key)
        return block

    def _room(self) -> int | None:
        """The number of a block that is free, or is made free; None while all are in use."""
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._known.values()), None)
        if oldest is None or oldest.batch >= next(iter(self._computing)):
            return None
        return self._known.popitem(last=False)[1].number

    def layer(
        self, number: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of a layer, for keys and values that look like these [T, heads, size]."""
        if number == len(self._layers):
            held = (x.new_empty((self.tokens, *x.shape[1:])) for x in (keys, values))
            self._layers.append((next(held), next(held)))
        return self._layers[number]
