"""Packed rows: where every token stands, and who attends to whom. No model, no torch.

A packed row holds all tokens of a batch one after the other, with no padding. It is cut
into *segments*: a run of tokens that attend to themselves, and possibly to a *shared*
run before them (the prompt of the same item):

    item with three responses        item with one response
    ┌────────┬─────┬───────┬────┐    ┌───────────────┐
    │ prompt │ r₀  │  r₁   │ r₂ │    │  prompt + r   │
    └────────┴─────┴───────┴────┘    └───────────────┘
      segment  segments that share     one segment
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.reward.types import BatchStats, EncodedItem, TokenArray

Places = npt.NDArray[np.int64]
PositionsOf = Callable[[TokenArray], Places]
"""The position ids of a whole sequence, as the architecture counts them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of the packed row that attends to itself and to a shared run before it."""

    start: int
    length: int
    shared_start: int = 0
    shared_length: int = 0

    def keys(self) -> Places:
        """Places in the row of all the tokens that it attends to, oldest first."""
        shared = np.arange(self.shared_start, self.shared_start + self.shared_length)
        return np.concatenate([shared, np.arange(self.start, self.start + self.length)])


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
    """Places in the row of each sequence's tokens, in the items' order."""
    readout: tuple[npt.NDArray[np.int64], ...]
    """Places *in each sequence* to read (process rewards), or empty."""
    reused: tuple[int, ...]
    """Tokens of each sequence that another one computed."""
    stats: BatchStats


def lay_out(items: Sequence[EncodedItem], positions_of: PositionsOf, *, share: bool) -> Layout:
    """Put a batch into one row.

    Args:
        items: at least one, with at least one response in each.
        positions_of: gives the position ids of a whole sequence.
        share: compute a prefix once for all responses (decoders only: in a bidirectional
            model the prompt sees the response, so nothing can be shared). A sequence with
            token types stands alone: those of a prompt may depend on what follows.
    """
    row = _Row(positions_of)
    for item in items:
        if share and len(item.suffixes) > 1 and len(item.prefix) and not item.token_types:
            row.add_shared(item)
        else:
            for suffix in item.suffixes:
                row.add_alone(np.concatenate([item.prefix, suffix]))
    readout = tuple(places for item in items for places in item.readout)
    types = token_types(items)
    computed = row.length
    stats = BatchStats(
        computed_tokens=computed,
        padding_tokens=0,
        reused_tokens=sum(row.reused),
        sequences=len(row.sequences),
    )
    return Layout(
        tokens=np.concatenate(row.tokens).astype(np.int64),
        positions=np.concatenate(row.positions).astype(np.int64),
        types=None if types is None else np.concatenate(types),
        segments=tuple(row.segments),
        sequences=tuple(row.sequences),
        readout=readout,
        reused=tuple(row.reused),
        stats=stats,
    )


def token_types(items: Sequence[EncodedItem]) -> list[Places] | None:
    """The token types of each sequence, 0 (the models' default) where an item has none.

    None when no item has any.
    """
    if not any(item.token_types for item in items):
        return None
    found: list[Places] = []
    for item in items:
        if item.token_types:
            found += [types.astype(np.int64) for types in item.token_types]
        else:
            found += [np.zeros(length, dtype=np.int64) for length in item.lengths()]
    return found


class _Row:
    """The row while it is being filled."""

    def __init__(self, positions_of: PositionsOf) -> None:
        self.positions_of = positions_of
        self.length = 0
        self.tokens: list[TokenArray] = []
        self.positions: list[Places] = []
        self.segments: list[Segment] = []
        self.sequences: list[Places] = []
        self.reused: list[int] = []

    def add_alone(self, tokens: TokenArray) -> None:
        start = self._append(tokens, self.positions_of(tokens))
        self.segments.append(Segment(start, len(tokens)))
        self.sequences.append(np.arange(start, start + len(tokens)))
        self.reused.append(0)

    def add_shared(self, item: EncodedItem) -> None:
        size = len(item.prefix)
        shared = self._append(item.prefix, self.positions_of(item.prefix))
        self.segments.append(Segment(shared, size))
        self.reused += [0] + [size] * (len(item.suffixes) - 1)
        for suffix in item.suffixes:
            positions = self.positions_of(np.concatenate([item.prefix, suffix]))[size:]
            start = self._append(suffix, positions)
            segment = Segment(start, len(suffix), shared, size)
            self.segments.append(segment)
            self.sequences.append(segment.keys())

    def _append(self, tokens: TokenArray, positions: Places) -> int:
        start = self.length
        self.tokens.append(tokens)
        self.positions.append(positions)
        self.length += len(tokens)
        return start


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Segments of like shape that one attention call computes, padded to one shape.

    The padding is inside attention only: linear layers never see it.
    """

    segments: tuple[Segment, ...]
    queries: int
    """Longest segment."""
    keys: int
    """Longest segment with what it shares."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a single self-contained segment: a slice of the row will do."""
        return len(self.segments) == 1 and self.segments[0].shared_length == 0

    def query_places(self) -> Places:
        """Places in the row of each query, [B, Q]; the padding points at place 0."""
        places = np.zeros((len(self.segments), self.queries), dtype=np.int64)
        for i, s in enumerate(self.segments):
            places[i, : s.length] = np.arange(s.start, s.start + s.length)
        return places

    def key_places(self) -> Places:
        """Places in the row of each key, [B, K]; the padding points at place 0."""
        places = np.zeros((len(self.segments), self.keys), dtype=np.int64)
        for i, s in enumerate(self.segments):
            places[i, : s.shared_length + s.length] = s.keys()
        return places

    def valid_queries(self) -> npt.NDArray[np.bool_]:
        """Which queries are no padding, [B, Q]."""
        lengths = np.array([s.length for s in self.segments])
        return np.asarray(np.arange(self.queries)[None, :] < lengths[:, None])

    def mask(self, *, causal: bool, window: int | None) -> npt.NDArray[np.bool_] | None:
        """Who may attend to whom: [1 or B, 1 or Q, K], True where attention is allowed.

        None when plain attention over the bucket's shape is right as it stands (causal
        attention from the top left corner, or all to all). A query with distance d to a
        key sees it when d < window, as transformers counts windows.
        """
        reach = window is not None and window < self.keys
        shared = any(s.shared_length for s in self.segments)
        lengths = {s.length + s.shared_length for s in self.segments}
        if causal and not shared and not reach:
            return None  # padding is to the right of every real query
        if not causal and len(lengths) == 1 and not reach:
            return None
        offsets = np.array(sorted({s.shared_length for s in self.segments}))
        if not (causal and len(offsets) == 1):
            offsets = np.array([s.shared_length for s in self.segments])
        q = offsets[:, None, None] + np.arange(self.queries)[None, :, None]
        k = np.arange(self.keys)[None, None, :]
        if causal:
            allowed = k <= q
        else:
            ends = np.array([s.length + s.shared_length for s in self.segments])
            allowed = k < ends[:, None, None]
        if reach:
            assert window is not None
            allowed = allowed & (np.abs(q - k) < window)
            # A padded query would see nothing, and its softmax would be 0/0.
            allowed = allowed | ~allowed.any(-1, keepdims=True)
        return np.asarray(allowed)


CALL_COST = 4096
"""What an attention call costs beside its arithmetic, in query-key pairs (profiled; see
`docs/performance.md`)."""


def make_buckets(segments: Sequence[Segment], call_cost: int = CALL_COST) -> tuple[Bucket, ...]:
    """Group segments so that padding costs less than the calls it saves.

    Segments are sorted by shape and joined greedily: a segment joins the open bucket
    when padding all of it to the new shape costs less than a call of its own.
    """
    order = sorted(segments, key=lambda s: (s.shared_length > 0, s.shared_length, s.length))
    buckets: list[Bucket] = []
    for segment in order:
        alone = Bucket((segment,), segment.length, segment.shared_length + segment.length)
        if buckets and (joined := _join(buckets[-1], segment, call_cost)):
            buckets[-1] = joined
        else:
            buckets.append(alone)
    return tuple(buckets)


def _join(bucket: Bucket, segment: Segment, call_cost: int) -> Bucket | None:
    size = len(bucket.segments)
    queries = max(bucket.queries, segment.length)
    keys = max(bucket.keys, segment.shared_length + segment.length)
    before = size * bucket.queries * bucket.keys
    own = segment.length * (segment.shared_length + segment.length)
    if (size + 1) * queries * keys - before > own + call_cost:
        return None
    return Bucket((*bucket.segments, segment), queries, keys)
