"""Packed rows: where every token stands, and what it attends to. No model is computed here.

A packed row holds all tokens of a batch that are computed, one after the other, with no padding.
It is cut into *segments*: a run of tokens that attend to themselves, and possibly to a *context*
before them. In a decoder, equal beginnings are computed once, whichever items they come from; and
what the prefix cache holds is not computed at all:

    two sequences with one beginning        one sequence alone
    ┌───────────┬──────────┬──────────┐    ┌──────────────────┐
    │ beginning │  rest 0  │  rest 1  │    │    sequence 2    │
    └───────────┴──────────┴──────────┘    └──────────────────┘
       segment     its context: beginning        segment

Places of keys count on after the row: first its own tokens, then those out of the prefix cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.reward.engine.prefix_cache import BLOCK, CachedBlock, PrefixCache
from guerdon.reward.types import BatchStats, EncodedItem, TokenArray

Places = npt.NDArray[np.int64]
PositionsOf = Callable[[TokenArray], Places]
"""The position ids of a whole sequence, as the architecture counts them."""

LEAST_SHARED = 16
"""A beginning that different items have in common is computed once from this length on. A segment
with a context costs a mask and the copying of keys."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the packed row that attends to itself and to a context before it."""

    start: int
    length: int
    context: tuple[range, ...] = ()
    """Places of the keys before its own, oldest first: the sequence from its beginning."""

    @property
    def reach(self) -> int:
        """Tokens that it attends to: its context's and its own."""
        return self.context_length + self.length

    @property
    def context_length(self) -> int:
        """Tokens of its context."""
        return sum(map(len, self.context))

    def keys(self) -> Places:
        """Places of all the tokens that it attends to, oldest first."""
        return _places((*self.context, range(self.start, self.start + self.length)))


def _places(runs: Sequence[range]) -> Places:
    return np.concatenate([np.arange(0), *(np.arange(r.start, r.stop) for r in runs)])


@dataclass(frozen=True, slots=True, eq=False)
class CacheUse:
    """What a batch takes out of the prefix cache, and what it puts there."""

    taken: Places
    """Places in the cache of the keys that follow the row's own."""
    kept: Places
    """Places of keys that the cache is to hold."""
    kept_at: Places
    """Places in the cache where they go, [len(kept)]."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A batch as one row of tokens."""

    tokens: npt.NDArray[np.int64]
    """Token ids, shape [T]."""
    positions: Places
    """Position ids, shape [T]."""
    types: Places | None
    """Token types, shape [T]; None when no sequence has any."""
    segments: tuple[Segment, ...]
    """They cover the row, in its order."""
    sequences: tuple[Places, ...]
    """Places of each sequence's tokens, in the items' order; from T on they are in the cache."""
    readout: tuple[npt.NDArray[np.int64], ...]
    """Places *in each sequence* to read (process rewards), or empty."""
    reused: tuple[int, ...]
    """Tokens of each sequence that it did not have to compute."""
    stats: BatchStats
    cache_use: CacheUse | None


@dataclass(frozen=True, slots=True, eq=False)
class _Sequence:
    """One prompt with one response."""

    item: int
    tokens: TokenArray
    prefix: int
    """Tokens of it that all responses of its item have in common."""
    first_read: int
    """Place of the first hidden state that is read: those before it may come from the cache."""


FirstRead = Callable[[EncodedItem, int], int]
"""Place of the first token of response `j` of an item whose hidden state is read."""


def lay_out(
    items: Sequence[EncodedItem],
    positions_of: PositionsOf,
    *,
    share: bool,
    cache: PrefixCache | None = None,
    first_read: FirstRead = lambda item, j: 0,
) -> Layout:
    """Put a batch into one row.

    Args:
        items: at least one, with at least one response in each.
        positions_of: gives the position ids of a whole sequence.
        share: compute equal beginnings once (decoders only: in a bidirectional model a
            beginning sees what follows). A batch with token types shares nothing: those of a
            beginning may depend on what follows.
        cache: of keys and values, where the model has one, in the midst of its `batch()`. It is
            told what the batch will put there.
        first_read: says before which token the cache may be used.
    """
    sequences = [
        _Sequence(i, np.concatenate([item.prefix, suffix]), len(item.prefix), first_read(item, j))
        for i, item in enumerate(items)
        for j, suffix in enumerate(item.suffixes)
    ]
    types = token_types(items)
    if share and types is None:
        runs = list(_common_runs(sequences))
    else:
        runs = [_Run(0, len(s.tokens), (n,), None) for n, s in enumerate(sequences)]
        cache = None
    row = _Row(sequences, runs, positions_of, cache)
    stats = BatchStats(
        computed_tokens=row.length,
        padding_tokens=0,
        reused_tokens=sum(row.reused),
        cached_tokens=len(row.taken),
        sequences=len(sequences),
    )
    return Layout(
        tokens=np.concatenate(row.tokens).astype(np.int64),
        positions=np.concatenate(row.positions).astype(np.int64),
        types=None if types is None else np.concatenate(types),
        segments=tuple(row.segments),
        sequences=tuple(row.places),
        readout=tuple(places for item in items for places in item.readout),
        reused=tuple(row.reused),
        stats=stats,
        cache_use=None if cache is None else row.cache_use(cache),
    )


def token_types(items: Sequence[EncodedItem]) -> list[Places] | None:
    """The token types of each sequence, 0 (the models' default) where an item has none.

    None when no item has any.
    """
    if not any(item.token_types for item in items):
        return None
    return [
        types.astype(np.int64)
        for item in items
        for types in item.token_types or map(np.zeros, item.lengths())
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Tokens `begin` to `end` of sequences that are the same up to there."""

    begin: int
    end: int
    sequences: tuple[int, ...]
    before: _Run | None
    """What comes before it, from `before.begin` to `begin`."""


def _common_runs(sequences: Sequence[_Sequence]) -> Iterator[_Run]:
    """Cut sequences where those with the same beginning part, each run after the one before it.

    A run that several have in common is at least `LEAST_SHARED` long, or ends with the prompt of
    one item. A sequence that is the beginning of another may have no run of its own.
    """
    # Sorted, what has most in common stands side by side.
    order = sorted(range(len(sequences)), key=lambda n: sequences[n].tokens.astype(">u4").tobytes())
    ordered = [sequences[n] for n in order]
    pairs = list(itertools.pairwise(ordered))
    common = [0, *(_common(a, b) for a, b in pairs)]
    prompts = [0, *(a.prefix if a.item == b.item else 0 for a, b in pairs)]

    def joined(n: int, depth: int) -> bool:
        """Whether a sequence goes on from `depth` with the one before it in the order."""
        return common[n] >= depth + LEAST_SHARED or prompts[n] > depth

    def until(n: int, depth: int) -> int:
        """Up to where it goes on so: to the end of the prompt, or well beyond."""
        far = common[n] >= max(depth, prompts[n]) + LEAST_SHARED
        return common[n] if far else prompts[n]

    stack: list[tuple[int, int, int, _Run | None]] = [(0, len(order), 0, None)]
    while stack:
        first, last, depth, before = stack.pop()
        cuts = [n for n in range(first + 1, last) if not joined(n, depth)]
        for low, high in zip([first, *cuts], [*cuts, last], strict=True):
            alone = high == low + 1
            ends = (until(n, depth) for n in range(low + 1, high))
            end = len(ordered[low].tokens) if alone else min(ends)
            run = _Run(depth, end, tuple(sorted(order[low:high])), before)
            if end > depth:
                yield run
            if not alone:
                stack.append((low, high, end, run))


def _common(a: _Sequence, b: _Sequence) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(a.tokens), len(b.tokens))
    different = a.tokens[:length] != b.tokens[:length]
    return int(different.argmax()) if different.any() else length


class _Row:
    """The row that is made of runs."""

    def __init__(
        self,
        sequences: Sequence[_Sequence],
        runs: Sequence[_Run],
        positions_of: PositionsOf,
        cache: PrefixCache | None,
    ) -> None:
        self._sequences = sequences
        self._runs = runs
        blocks: dict[_Run | None, list[CachedBlock]] = {None: []}
        for run in runs:
            before = blocks[run.before]
            blocks[run] = before if cache is None else cache.find(self._readable(run), before)
        # Up to where each run comes from the cache.
        cached = [min(run.end, max(run.begin, BLOCK * len(blocks[run]))) for run in runs]
        self.length = sum(run.end - middle for run, middle in zip(runs, cached, strict=True))
        self.tokens: list[TokenArray] = []
        self.positions: list[Places] = []
        self.segments: list[Segment] = []
        self.reused = [len(s.tokens) for s in sequences]
        taken: list[Places] = []
        start, end = 0, self.length
        contexts: dict[_Run | None, tuple[range, ...]] = {None: ()}
        last: list[_Run | None] = [None] * len(sequences)
        for run, middle in zip(runs, cached, strict=True):
            owner = run.sequences[0]
            context = contexts[run.before]
            if middle > run.begin:
                places = np.arange(run.begin, middle)
                numbers = np.array([block.number for block in blocks[run]])
                taken.append(numbers[places // BLOCK] * BLOCK + places % BLOCK)
                context = (*context, range(end, end := end + len(places)))
            if run.end > middle:
                tokens = sequences[owner].tokens
                self.tokens.append(tokens[middle : run.end])
                self.positions.append(positions_of(tokens)[middle : run.end])
                self.segments.append(Segment(start, run.end - middle, context))
                self.reused[owner] -= run.end - middle
                context = (*context, range(start, start := start + run.end - middle))
            contexts[run] = context
            for n in run.sequences:
                last[n] = run
        self.taken = np.concatenate([np.arange(0), *taken])
        self.places = [_places(contexts[run]) for run in last]

    def _readable(self, run: _Run) -> TokenArray:
        """The tokens up to a run's end, or to the first one whose hidden state is read."""
        first_read = min(self._sequences[n].first_read for n in run.sequences)
        return self._sequences[run.sequences[0]].tokens[: min(run.end, first_read)]

    def cache_use(self, cache: PrefixCache) -> CacheUse:
        """Let the cache keep all whole blocks of the sequences that it has room for."""
        kept: list[Places] = []
        kept_at: list[int] = []
        blocks: dict[_Run | None, list[CachedBlock]] = {None: []}
        for run in self._runs:
            owner, before = run.sequences[0], blocks[run.before]
            tokens = self._sequences[owner].tokens[: run.end]
            blocks[run], new = cache.keep(tokens, before)
            for place, block in new:
                kept.append(self.places[owner][place : place + BLOCK])
                kept_at.append(block)
        own = (blocks[run][len(blocks[run.before]) :] for run in reversed(self._runs))
        cache.end_batch(block for run in own for block in reversed(run))  # what follows goes first
        at = BLOCK * np.array(kept_at, dtype=np.int64)[:, None] + np.arange(BLOCK)
        return CacheUse(self.taken, np.concatenate([np.arange(0), *kept]), at.ravel())
