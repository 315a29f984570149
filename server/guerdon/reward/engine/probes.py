"""What a model must pass before it serves: a few probes, computed every way, compared.

Each probe is scored by plain `transformers` one at a time (the reference), by the packed engine all
together and one by one, and by the padded engine. Packed parts from plain: the model runs in padded
batches. Padded parts from plain, or a score is not finite: the checkpoint is refused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guerdon.reward.engine.architecture import Architecture, plain
from guerdon.reward.engine.attention_record import AttentionRecord, record_attention
from guerdon.reward.engine.device import interpret_error
from guerdon.reward.engine.engine import Engine, PackedEngine, PaddedEngine
from guerdon.reward.engine.heads import MARKS, Logits, Reads
from guerdon.reward.engine.kernels import Table, check_kernels
from guerdon.reward.engine.language_head import VerdictNetwork
from guerdon.reward.engine.prefix_cache import PrefixCache
from guerdon.reward.engine.prepacked import prepack
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.types import DeviceLost, EncodedItem, EngineOutOfMemory, TokenArray
from guerdon.serving.errors import CheckpointRefused

logger = logging.getLogger(__name__)

FLOAT32_TOLERANCE = 1e-4
"""Largest difference of logits in float32, relative to the largest logit where that is above 1."""
HALF_ALLOWANCE = 3.0
"""How many times plain transformers' own largest error is allowed in half precision."""
REFERENCE_PARAMETERS = 2_000_000_000
"""Up to this size a half-precision model is probed against a float32 copy of itself."""
_NOT_OF_THE_MODEL = (MemoryError, EngineOutOfMemory, torch.OutOfMemoryError, DeviceLost)
LONGEST_PROBE = {"cpu": 600, "cuda": 4_200}
"""Probes reach past the sliding window where that is no longer than this."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The engine that passed."""

    engine: Engine
    reason: str
    """Why it is padded; empty when packed."""
    difference: float
    """Largest difference from plain transformers in the probes' logits."""
    parameters: int
    """How many the model has."""


def select_engine(model: Any, settings: EngineSettings, max_tokens: int) -> Selected:
    """Try the engines in order, and return the first whose probes agree.

    Raises:
        CheckpointRefused: none agrees, or the head is unknown, or a score is not finite, or
            plain transformers itself fails.
        EngineOutOfMemory, DeviceLost: they say nothing of the model.
    """
    try:
        return _select(model, settings, max_tokens)
    except (CheckpointRefused, *_NOT_OF_THE_MODEL):
        raise
    except Exception as error:
        if (meaning := interpret_error(error, model.device)) is not None:
            raise meaning from error
        raise CheckpointRefused(
            f"its probes can't be computed: {type(error).__name__}: {error}"
        ) from error


def _select(model: Any, settings: EngineSettings, max_tokens: int) -> Selected:
    probes = _Probes(model, max_tokens)
    prepack(model.base_model)
    reason = "the settings ask for padded batches"
    if settings.mode != "padded":
        engine, reason, difference = _try_packed(model, probes, settings)
        if engine is not None:
            return Selected(engine, "", difference, probes.parameters)
        if settings.mode == "packed":
            raise CheckpointRefused(f"packed mode was asked for, but {reason}")
        logger.warning("the model runs in padded batches: %s", reason)
    padded = PaddedEngine(
        model, deterministic=settings.deterministic, max_batch_tokens=settings.max_batch_tokens
    )
    difference = probes.difference(padded)
    strict = probes.exact_difference(PaddedEngine)
    if exceeded := probes.exceeded(difference, strict):
        found, allowed = exceeded
        raise CheckpointRefused(
            f"its probe scores differ by {found:.2g} between padded batches and plain "
            f"transformers, more than {allowed:.2g}"
            + (f"; packed: {reason}" if settings.mode != "padded" else "")
        )
    return Selected(padded, reason, difference, probes.parameters)


def _try_packed(
    model: Any, probes: _Probes, settings: EngineSettings
) -> tuple[PackedEngine | None, str, float]:
    engine = PackedEngine(model, deterministic=settings.deterministic)
    if engine.architecture.not_packable:
        return None, engine.architecture.not_packable, 0.0
    asked, raised = probes.ask(engine)
    # Also after an error: one that the kernel raised is no reason to serve without it.
    check_kernels(asked.calls, probes.tables(engine), model.device)
    if raised:
        return None, raised, 0.0
    try:
        difference = probes.difference(engine)
        strict = probes.exact_difference(PackedEngine)
    except _NOT_OF_THE_MODEL:
        raise
    except Exception as error:  # whatever it raises, it cannot be packed
        return None, _raised(error), 0.0
    if exceeded := probes.exceeded(difference, strict):
        found, allowed = exceeded
        words = f"packed probe scores differ from plain transformers by {found:.2g}"
        return None, f"{words}, more than {allowed:.2g}", found
    if lost := asked.lost_mask():
        return None, lost, difference
    if settings.prefix_cache_mib and engine.can_cache:
        memory = settings.prefix_cache_mib << 20
        difference = max(difference, _add_cache(engine, probes, asked, memory))
    return engine, "", difference


def _add_cache(engine: PackedEngine, probes: _Probes, asked: AttentionRecord, memory: int) -> float:
    """Give the engine a prefix cache, and compute the probes out of it.

    Returns:
        Their largest difference from plain transformers.

    Raises:
        CheckpointRefused: it is more than rounding explains.
    """
    engine.cache = PrefixCache(memory, asked.token_bytes)
    found = probes.again(engine)
    strict = 0.0
    if probes.reference is not None:
        exact = PackedEngine(probes.reference)
        exact.cache = PrefixCache(memory, 2 * asked.token_bytes)  # float32 for half precision
        strict = probes.again(exact)
    if exceeded := probes.exceeded(found, strict):
        difference, allowed = exceeded
        raise CheckpointRefused(
            f"its probe scores differ by {difference:.2g} from plain transformers once their "
            f"beginnings come from the prefix cache, more than {allowed:.2g}; "
            "prefix_cache_mib = 0 does without"
        )
    check_kernels(asked.calls, probes.tables(engine), engine.model.device)
    engine.cache.clear()
    return found


def _raised(error: Exception) -> str:
    logger.debug("the packed probe raised", exc_info=True)
    return f"packed attention raised {type(error).__name__}: {error}"


class _Probes:
    """Fixed inputs for a model, and what plain transformers says of them."""

    def __init__(self, model: Any, max_tokens: int) -> None:
        self.model = model
        self.parameters = sum(p.numel() for p in model.parameters())
        head = PaddedEngine(model).head  # refuses an unknown head before anything is computed
        self.items = make_probes(Architecture.read(model), _limit(model, max_tokens), head.reads)
        self.reference = self._float32_copy()
        exact = self.reference if self.reference is not None else model
        self.wanted = _plain(exact, self.items, head.reads)
        _refuse_non_finite(self.wanted)
        self.scale = max(1.0, float(np.abs(self.wanted).max()))
        self.exact_tolerance = FLOAT32_TOLERANCE * self.scale
        self.tolerance = self._tolerance(head.reads)
        verdict = isinstance(exact, VerdictNetwork)
        if verdict or head.reads is Reads.RESPONSE:
            longest = max(self.items, key=lambda item: item.lengths()[0])
            allowed = self.tolerance if exact is model else self.exact_tolerance
            _refuse_foresight(exact.language_model if verdict else exact, longest, allowed)

    def _float32_copy(self) -> Any:
        if self.model.dtype == torch.float32 or self.parameters > REFERENCE_PARAMETERS:
            return None
        return copy.deepcopy(self.model).float()

    def _tolerance(self, reads: Reads) -> float:
        if self.model.dtype == torch.float32:
            return self.exact_tolerance
        step = torch.finfo(self.model.dtype).eps * self.scale
        if self.reference is None:
            # No reference of higher precision: rounding errors of independent layers add
            # up like a random walk.
            layers = self.model.config.get_text_config().num_hidden_layers
            return float(HALF_ALLOWANCE * step * layers**0.5)
        own = _plain(self.model, self.items, reads)
        _refuse_non_finite(own)
        return float(HALF_ALLOWANCE * np.abs(own - self.wanted).max() + step)

    def exceeded(self, found: float, strict: float) -> tuple[float, float] | None:
        """A difference that is larger than it may be, and what it may be; None without one.

        Args:
            found: largest difference of the engine that is to serve.
            strict: the same of a float32 copy.
        """
        for difference, allowed in ((found, self.tolerance), (strict, self.exact_tolerance)):
            if not difference <= allowed:
                return difference, allowed
        return None

    def difference(self, engine: Engine) -> float:
        """Largest difference of an engine from plain: all at once, and one by one."""
        together = _flat(engine, self.items)
        alone = np.concatenate([_flat(engine, [item]) for item in self.items])
        worst = np.maximum(np.abs(together - self.wanted), np.abs(alone - self.wanted))
        return float(worst.max())

    def again(self, engine: Engine) -> float:
        """Largest difference from plain when all is computed for the second time."""
        _flat(engine, self.items)
        return float(np.abs(_flat(engine, self.items) - self.wanted).max())

    def ask(self, engine: PackedEngine) -> tuple[AttentionRecord, str]:
        """What the model asks of its attention; and empty, or what it raised."""
        alone = next(item for item in self.items if item.sequences == 1)
        with record_attention() as asked:
            try:
                engine.compute([alone])
            except _NOT_OF_THE_MODEL:
                raise
            except Exception as error:
                return asked, _raised(error)
        return asked, ""

    def tables(self, engine: PackedEngine) -> list[Table]:
        """The segments of all items together, of the longest alone, and of a group alone."""
        longest = max(self.items, key=lambda item: item.lengths()[0])
        group = next(item for item in self.items if item.sequences > 1)
        with engine.batch():
            return [engine.lay_out(items).segments for items in (self.items, [longest], [group])]

    def exact_difference(self, kind: type[PackedEngine] | type[PaddedEngine]) -> float:
        """The largest difference of a float32 copy in such an engine; 0 where there is none.

        Half precision would hide an attention that is off by one token.
        """
        if self.reference is None:
            return 0.0
        return self.difference(kind(self.reference))


def make_probes(architecture: Architecture, limit: int, reads: Reads) -> list[EncodedItem]:
    """Random sequences of mixed lengths up to `limit`, and groups with a shared prompt.

    Some reach past the sliding window where `limit` lets them.
    """
    rng = np.random.default_rng(0)
    edges = [
        edge for edge in (architecture.window, architecture.longrope_limit) if edge is not None
    ]
    far = min(limit, max([96, *(edge + 9 for edge in edges if edge + 9 <= limit)]))
    shapes = [(0, [n]) for n in (1, 2, 9, 17, 17, 40, far)]
    shapes += [(23, [5, 12, 1]), (7, [3, 3]), (max(0, far - 20), [20, 4])]
    items = []
    for prefix, suffixes in shapes:
        prefix = min(prefix, limit // 2)
        suffixes = [min(n, limit - prefix) for n in suffixes]
        items.append(_item(rng, architecture, prefix, suffixes, reads))
    return items


def _item(
    rng: np.random.Generator,
    architecture: Architecture,
    prefix: int,
    suffixes: Sequence[int],
    reads: Reads,
) -> EncodedItem:
    def draw(n: int) -> Any:
        return rng.integers(0, architecture.vocabulary, n, dtype=np.int32)

    readout: tuple[Any, ...] = ()
    types: tuple[Any, ...] = ()
    if architecture.token_types > 1:
        # As of text pairs: the second text begins somewhere in the sequence.
        types = tuple(np.arange(prefix + n) >= (prefix + n) // 2 for n in suffixes)
        types = tuple(kind.astype(np.int32) for kind in types)
    if reads is Reads.STEPS:
        readout = tuple(np.unique([prefix // 2, prefix + n - 1]) for n in suffixes)
    elif reads is Reads.GATE:  # in the prompt where there is one
        readout = tuple(np.array([max(prefix - 1, 0)]) for _ in suffixes)
    elif reads is Reads.MARKS:
        readout = tuple(np.linspace(0, prefix + n - 1, MARKS, dtype=np.int64) for n in suffixes)
    elif reads is Reads.RESPONSE:  # responses may begin with the same tokens
        readout = tuple(np.arange(max(1, prefix // 2), prefix + n) for n in suffixes)
    return EncodedItem(
        prefix=draw(prefix),
        suffixes=tuple(draw(n) for n in suffixes),
        truncated=(0,) * len(suffixes),
        readout=readout,
        token_types=types,
    )


def _limit(model: Any, max_tokens: int) -> int:
    return min(max_tokens, LONGEST_PROBE.get(model.device.type, LONGEST_PROBE["cpu"]))


def _plain(model: Any, items: Sequence[EncodedItem], reads: Reads) -> Any:
    found = []
    with plain(model) as logits_of:
        for item in items:
            for j, suffix in enumerate(item.suffixes):
                types = item.token_types[j] if item.token_types else None
                given = item.readout[j] if reads in (Reads.GATE, Reads.MARKS) else None
                tokens = np.concatenate([item.prefix, suffix])
                logits = logits_of(tokens, types, given)
                if reads is Reads.RESPONSE:
                    found.append(_plain_logprobs(logits, tokens, item.readout[j]))
                else:
                    steps = item.readout[j] if reads is Reads.STEPS else slice(None)
                    found.append(logits.numpy()[steps].ravel())
    return np.concatenate(found)


def _plain_logprobs(logits: torch.Tensor, tokens: TokenArray, read: Any) -> Any:
    """log π of the tokens that are read, from the logits [T, V] of all."""
    chosen = torch.from_numpy(tokens[read].astype(np.int64))[:, None]
    return logits[read - 1].log_softmax(-1).gather(1, chosen)[:, 0].numpy()


def _refuse_foresight(model: Any, item: EncodedItem, allowed: float) -> None:
    """No token helps to foretell itself: what comes later changes nothing before."""
    tokens = np.concatenate([item.prefix, item.suffixes[0]])
    kept = (len(tokens) + 1) // 2
    other = np.concatenate([tokens[:kept], tokens[kept:][::-1]])
    with plain(model) as logits_of:
        first, second = (logits_of(row, None)[:kept] for row in (tokens, other))
    if not float((first - second).abs().max()) <= allowed:
        raise CheckpointRefused(
            "what it says of a token depends on that token and those after it: it is no causal "
            "language model"
        )


def _flat(engine: Engine, items: Sequence[EncodedItem]) -> Logits:
    computed = engine.compute(items)
    return np.concatenate([logits.ravel() for row in computed.logits for logits in row])


def _refuse_non_finite(scores: Any) -> None:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise CheckpointRefused(
            f"{bad} of its {scores.size} probe scores are not finite numbers: the weights hold "
            "NaN or infinity, or overflow in this data type"
        )
