"""The packed engine and the padded one: from encoded items to logits.

Both take the same items and give the same numbers; `guerdon.reward.engine.probes` holds
them against plain `transformers` when a model is loaded.
"""

from __future__ import annotations

import abc
import gc
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guerdon.reward.engine.architecture import Architecture, use_attention
from guerdon.reward.engine.attention import PACKED, AttentionPlan, CachedKeys, register
from guerdon.reward.engine.device import interpret_error, release_memory
from guerdon.reward.engine.heads import Logits, Reads, find_head, first_read
from guerdon.reward.engine.language_head import LanguageHead, language_head
from guerdon.reward.engine.plan import Layout, Places, lay_out, token_types
from guerdon.reward.engine.prefix_cache import PrefixCache
from guerdon.reward.types import BatchStats, ComputeMode, EncodedItem, TokenArray


@dataclass(frozen=True, slots=True)
class BatchLogits:
    """The logits of a batch, and what they cost."""

    logits: list[list[Logits]]
    """Logits [places read, labels] of each item's responses: one place, or one per step. Of
    language models the log-probabilities of the response's tokens."""
    reused: list[list[int]]
    """Tokens of each item's responses that another response or an earlier batch computed."""
    stats: BatchStats


_Forward = tuple[list[Logits], Sequence[int], BatchStats]


class Engine(abc.ABC):
    """Computes the logits of encoded items. One thread at a time."""

    mode: ComputeMode
    attention: str
    cache: PrefixCache | None = None

    def __init__(self, model: Any, *, deterministic: bool = False) -> None:
        self.model = model
        self.base = model.base_model
        self.head = language_head(model) or find_head(model)
        self.architecture = Architecture.read(model)
        self.deterministic = deterministic

    @property
    def preemptible(self) -> bool:
        """Whether another batch may be computed between the layers of one."""
        return False

    def compute(self, items: Sequence[EncodedItem]) -> BatchLogits:
        """The logits of each response of each item.

        Raises:
            EngineOutOfMemory: the batch did not fit.
            DeviceLost: the device computes nothing any more.
        """
        use_attention(self.model, self.attention)
        results = [[np.zeros(0, dtype=np.float32)] * len(item.suffixes) for item in items]
        reused = [[0] * len(item.suffixes) for item in items]
        total = BatchStats(computed_tokens=0, padding_tokens=0, reused_tokens=0, sequences=0)
        try:
            for part in self._parts(items):
                with torch.inference_mode():
                    logits, shared, stats = self._forward([item for item, _ in part])
                places = [place for _, owned in part for place in owned]
                for (i, j), value, tokens in zip(places, logits, shared, strict=True):
                    results[i][j], reused[i][j] = value, tokens
                total += stats
            return BatchLogits(results, reused, total)
        except (RuntimeError, MemoryError) as error:
            meaning = interpret_error(error, self.model.device)
            if meaning is None:
                raise
        # Outside of the handler: the error, and the batch's tensors with it, are gone by now.
        release_memory(self.model.device)
        raise meaning

    def close(self) -> None:
        """Free the model's memory. Nothing can be computed afterwards."""
        device = self.model.device
        del self.model, self.base, self.head
        # Modules hold each other in circles, which no collection sees in a heap that was frozen.
        if gc.get_freeze_count():
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        release_memory(device)

    @abc.abstractmethod
    def _forward(self, items: Sequence[EncodedItem]) -> _Forward:
        """Logits and reused tokens of every response, in order, as one unit of work."""

    def _parts(
        self, items: Sequence[EncodedItem]
    ) -> Iterator[list[tuple[EncodedItem, list[tuple[int, int]]]]]:
        """What may be computed together, each with the places of its results."""
        parts: dict[Hashable, list[tuple[EncodedItem, list[tuple[int, int]]]]] = {}
        for i, item in enumerate(items):
            groups: dict[Hashable, list[int]] = {}
            for j, length in enumerate(item.lengths()):
                key: Hashable = (
                    (i, j) if self.deterministic else self.architecture.rope_group(length)
                )
                groups.setdefault(key, []).append(j)
            for key, chosen in groups.items():
                whole = len(chosen) == len(item.suffixes)
                part = item if whole else item.select(chosen)
                parts.setdefault(key, []).append((part, [(i, j) for j in chosen]))
        yield from parts.values()

    def _hidden(self, tokens: Any, positions: Any, types: Any, **kwargs: Any) -> torch.Tensor:
        """The last hidden states, [B, T, H], of token ids, positions and types (or None) [B, T]."""
        device = self.model.device
        if types is not None:
            kwargs["token_type_ids"] = torch.from_numpy(types).to(device)
        if self.architecture.causal:
            kwargs["use_cache"] = False
        output = self.base(
            input_ids=torch.from_numpy(tokens).to(device),
            position_ids=torch.from_numpy(positions).to(device),
            **kwargs,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _read(
        self, hidden: torch.Tensor, tokens: Any, sequences: Sequence[Places], readout: Any
    ) -> list[Logits]:
        """What the head says of hidden states [M, H] and their tokens [M]."""
        if isinstance(self.head, LanguageHead):
            return self.head.logprobs(hidden, tokens, sequences, readout)
        return self.head.logits(hidden, sequences, readout)


class PackedEngine(Engine):
    """The whole batch as one row without padding; equal beginnings computed once."""

    mode = ComputeMode.PACKED
    attention = PACKED

    def __init__(self, model: Any, *, deterministic: bool = False) -> None:
        register()
        super().__init__(model, deterministic=deterministic)

    def close(self) -> None:
        """Free the model's memory, and the cache's."""
        self.cache = None
        super().close()

    @property
    def shares(self) -> bool:
        """Whether equal beginnings are computed once: no token of them sees what follows."""
        return self.architecture.causal and not self.deterministic

    @property
    def preemptible(self) -> bool:
        """Whether another batch may be computed between the layers of one.

        On a GPU the kernels of all layers are queued long before they run, and no batch gets
        ahead of another. Models with longrope keep the factors of the last batch themselves.
        """
        return self.model.device.type == "cpu" and self.architecture.longrope_limit is None

    @property
    def can_cache(self) -> bool:
        """Whether keys and values hold for any later batch, and spare it anything."""
        reads_all = self.head.reads in (Reads.FIRST, Reads.MEAN)
        return self.shares and self.architecture.longrope_limit is None and not reads_all

    def lay_out(self, items: Sequence[EncodedItem]) -> Layout:
        """The row in which the tokens of a batch stand, in the midst of `batch()`."""
        return lay_out(
            items,
            self.architecture.positions,
            share=self.shares,
            cache=self.cache,
            first_read=self._first_read,
        )

    def _first_read(self, item: EncodedItem, j: int) -> int:
        readout = item.readout[j] if item.readout else None
        return first_read(self.head.reads, readout, item.lengths()[j])

    def _forward(self, items: Sequence[EncodedItem]) -> _Forward:
        with self.batch():
            return self._compute(self.lay_out(items))

    def batch(self) -> AbstractContextManager[None]:
        """A context in which one batch is laid out and computed; see `PrefixCache.batch`."""
        return nullcontext() if self.cache is None else self.cache.batch()

    def _compute(self, layout: Layout) -> _Forward:
        device = self.model.device
        cached = None
        if self.cache is not None and layout.cache_use is not None:
            cached = CachedKeys(self.cache, layout.cache_use, device)
        plan = AttentionPlan(layout.segments, device, cached)
        types = None if layout.types is None else layout.types[None]
        hidden = self._hidden(layout.tokens[None], layout.positions[None], types, guerdon_plan=plan)
        logits = self._read(hidden[0], layout.tokens, layout.sequences, layout.readout)
        return logits, layout.reused, layout.stats


class PaddedEngine(Engine):
    """Batches of like length, padded on the right, with an attention mask."""

    mode = ComputeMode.PADDED

    def __init__(
        self, model: Any, *, deterministic: bool = False, max_batch_tokens: int = 16_384
    ) -> None:
        super().__init__(model, deterministic=deterministic)
        self.attention = self.architecture.padded_attention
        self.max_batch_tokens = max_batch_tokens

    def _forward(self, items: Sequence[EncodedItem]) -> _Forward:
        sequences = [np.concatenate([i.prefix, s]) for i in items for s in i.suffixes]
        readout = [places for item in items for places in item.readout]
        types = token_types(items)
        logits: list[Logits] = [np.zeros(0, dtype=np.float32)] * len(sequences)
        computed = 0
        for batch in _split(sequences, self.max_batch_tokens):
            chosen = [sequences[n] for n in batch]
            hidden, tokens, places = self._run(chosen, types and [types[n] for n in batch])
            steps = [readout[n] for n in batch] if readout else []
            for n, value in zip(batch, self._read(hidden, tokens, places, steps), strict=True):
                logits[n] = value
            computed += len(hidden)
        real = sum(map(len, sequences))
        stats = BatchStats(
            computed_tokens=computed,
            padding_tokens=computed - real,
            reused_tokens=0,
            sequences=len(sequences),
        )
        return logits, [0] * len(logits), stats

    def _run(
        self, sequences: Sequence[TokenArray], types: Sequence[Places] | None
    ) -> tuple[torch.Tensor, Places, list[Places]]:
        """Hidden states [B * T, H] of one padded batch, its tokens, each sequence's places."""
        size, longest = len(sequences), max(map(len, sequences))
        tokens = np.full((size, longest), self.architecture.filler, dtype=np.int64)
        positions = np.zeros((size, longest), dtype=np.int64)
        mask = np.zeros((size, longest), dtype=np.int64)
        kinds = None if types is None else np.zeros((size, longest), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            length = len(sequence)
            tokens[row, :length] = sequence
            positions[row, :length] = self.architecture.positions(sequence)
            mask[row, :length] = 1
            if kinds is not None and types is not None:
                kinds[row, :length] = types[row]
        extra = {"attention_mask": torch.from_numpy(mask).to(self.model.device)}
        if mask.all():
            extra = {}
        hidden = self._hidden(tokens, positions, kinds, **extra)
        starts = range(0, size * longest, longest)
        places = [np.arange(s, s + len(x)) for s, x in zip(starts, sequences, strict=True)]
        return hidden.flatten(0, 1), tokens.ravel(), places


def _split(sequences: Sequence[TokenArray], limit: int) -> Iterator[list[int]]:
    """Batches of indices, longest first, each of at most `limit` tokens with padding."""
    batch: list[int] = []
    for n in sorted(range(len(sequences)), key=lambda n: -len(sequences[n])):
        if batch and (len(batch) + 1) * len(sequences[batch[0]]) > limit:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
