"""Segments of a packed row grouped into attention calls, and who attends to whom in each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.reward.engine.plan import Places, Segment


@dataclass(frozen=True, eq=False)
class Bucket:
    """Segments of like shape that one attention call computes, padded to one shape.

    The padding is inside attention only: linear layers never see it.
    """

    segments: tuple[Segment, ...]
    queries: int
    """Longest segment."""
    keys: int
    """Longest segment with its context."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a single self-contained segment: a slice of the row will do."""
        return len(self.segments) == 1 and not self.segments[0].context

    @functools.cached_property
    def context_length(self) -> int:
        """The longest context of a segment."""
        return max(self._contexts)

    @functools.cached_property
    def _contexts(self) -> frozenset[int]:
        return frozenset(segment.context_length for segment in self.segments)

    @functools.cached_property
    def _key_counts(self) -> frozenset[int]:
        return frozenset(segment.reach for segment in self.segments)

    def query_places(self) -> Places:
        """Places in the row of each query, [B, Q]; the padding points at place 0."""
        places = np.zeros((len(self.segments), self.queries), dtype=np.int64)
        for i, s in enumerate(self.segments):
            places[i, : s.length] = np.arange(s.start, s.start + s.length)
        return places

    def key_places(self) -> Places:
        """Places of each key, [B, K]; the padding points at place 0."""
        places = np.zeros((len(self.segments), self.keys), dtype=np.int64)
        for i, s in enumerate(self.segments):
            places[i, : s.reach] = s.keys()
        return places

    def valid_queries(self) -> npt.NDArray[np.bool_]:
        """Which queries are no padding, [B, Q]."""
        lengths = np.array([s.length for s in self.segments])
        return np.asarray(np.arange(self.queries)[None, :] < lengths[:, None])

    def is_uniform(self, *, causal: bool, window: int | None) -> bool:
        """Whether who sees whom is the same for all segments, and no window hides a key."""
        if self._reaches(window):
            return False
        # Causal queries see no padding: it is to the right of every one that is real.
        return len(self._contexts if causal else self._key_counts) == 1

    def _reaches(self, window: int | None) -> bool:
        return window is not None and window < self.keys

    def allowed(self, *, causal: bool, window: int | None) -> npt.NDArray[np.bool_]:
        """Who may attend to whom: [1 or B, 1 or Q, K], True where attention is allowed.

        A query with distance d to a key sees it when d < window, as transformers counts windows.
        """
        offsets = np.array([self.context_length])
        if not (causal and len(self._contexts) == 1):
            offsets = np.array([s.context_length for s in self.segments])
        q = offsets[:, None, None] + np.arange(self.queries)[None, :, None]
        k = np.arange(self.keys)[None, None, :]
        if causal:
            allowed = k <= q
        else:
            ends = np.array([s.reach for s in self.segments])
            allowed = k < ends[:, None, None]
        if self._reaches(window):
            assert window is not None
            allowed = allowed & (np.abs(q - k) < window)
            # A padded query would see nothing, and its softmax would be 0/0.
            allowed = allowed | ~allowed.any(-1, keepdims=True)
        return np.asarray(allowed)


CALL_COST = 4096
"""What an attention call costs beside its arithmetic, in query-key pairs (profiled; see
`docs/performance.md`)."""


def make_buckets(segments: Sequence[Segment]) -> tuple[Bucket, ...]:
    """Group segments so that padding costs less than the calls it saves.

    Segments are sorted by shape and joined greedily: a segment joins the open bucket
    when padding all of it to the new shape costs less than a call of its own.
    """
    buckets: list[Bucket] = []
    for segment in sorted(segments, key=lambda s: (s.context_length, s.length)):
        if buckets and (joined := _join(buckets[-1], segment)):
            buckets[-1] = joined
        else:
            buckets.append(Bucket((segment,), segment.length, segment.reach))
    return tuple(buckets)


def _join(bucket: Bucket, segment: Segment) -> Bucket | None:
    size = len(bucket.segments)
    queries = max(bucket.queries, segment.length)
    keys = max(bucket.keys, segment.reach)
    before = size * bucket.queries * bucket.keys
    own = segment.length * segment.reach
    if (size + 1) * queries * keys - before > own + CALL_COST:
        return None
    return Bucket((*bucket.segments, segment), queries, keys)
