"""What differs between architectures, read from a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from guerdon.reward.engine.plan import Places
from guerdon.reward.types import TokenArray
from guerdon.serving.errors import CheckpointRefused


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """How one model counts positions, attends and pads."""

    causal: bool
    """Whether no token sees a later one, in any layer."""
    window: int | None
    """The sliding window of its local layers, or None."""
    softcap: float | None
    """The cap on attention logits, or None."""
    padded_attention: str
    """The attention implementation of `transformers` for padded batches."""
    not_packable: str
    """Empty, or why its attention cannot be replaced."""
    token_types: int
    """How many token types it tells apart; 0 or 1 when none."""
    vocabulary: int
    """Token ids are below this."""
    filler: int
    """The token id to pad with; masked, so any will do."""
    padding_index: int | None
    """RoBERTa and its kin: positions start after this token id, which has none itself."""
    longrope_limit: int | None
    """Sequences longer than this use the other set of rotary factors."""

    @classmethod
    def read(cls, model: Any) -> Architecture:
        """What a model of `transformers` is like.

        Raises:
            CheckpointRefused: its scores depend on what is or was scored beside them.
        """
        config = model.config.get_text_config()
        if getattr(config, "index_topk", None) is not None:
            raise CheckpointRefused(
                "its sparse attention (index_topk) picks tokens by scores that often tie, so a "
                "reward would change with the batch it is computed in"
            )
        modules = [m for m in model.base_model.modules() if hasattr(m, "is_causal")]
        softcap = getattr(config, "attn_logit_softcapping", None)
        # The SDPA function of transformers silently ignores the soft cap.
        fused = model._supports_sdpa and softcap is None
        packable = bool(model._supports_attention_backend) and bool(modules)
        return cls(
            causal=bool(modules) and all(m.is_causal for m in modules),
            window=getattr(config, "sliding_window", None),
            softcap=softcap,
            padded_attention="sdpa" if fused else "eager",
            not_packable="" if packable else f"{type(model).__name__} brings its own attention",
            token_types=int(getattr(config, "type_vocab_size", None) or 0),
            vocabulary=int(config.vocab_size),
            filler=_filler(config),
            padding_index=_padding_index(model),
            longrope_limit=_longrope_limit(config),
        )

    def positions(self, tokens: TokenArray) -> Places:
        """Position ids of a whole sequence."""
        if self.padding_index is None:
            return np.arange(len(tokens))
        real = tokens != self.padding_index
        return np.asarray(np.cumsum(real) * real + self.padding_index)

    def rope_group(self, length: int) -> Hashable:
        """Sequences of different groups must not share a forward pass.

        LongRoPE (Phi-3) picks its factors by the longest sequence of a batch, so a
        short sequence's score would change with its neighbours.
        """
        return self.longrope_limit is not None and length > self.longrope_limit


def _filler(config: Any) -> int:
    pad = getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < config.vocab_size else 0


def _padding_index(model: Any) -> int | None:
    for module in model.base_model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx)
    return None


def _longrope_limit(config: Any) -> int | None:
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(v for v in parameters.values() if isinstance(v, dict))]
    kinds = {s.get("rope_type") for s in sets}
    if "dynamic" in kinds:
        raise CheckpointRefused(
            "its rotary embedding is of the type 'dynamic', whose scores depend on the longest "
            "sequence seen so far"
        )
    if "longrope" not in kinds:
        return None
    limits = {s.get("original_max_position_embeddings") for s in sets} - {None}
    limits |= {getattr(config, "original_max_position_embeddings", None)} - {None}
    if len(limits) != 1:
        raise CheckpointRefused("longrope without one original_max_position_embeddings")
    return int(str(limits.pop()))


def use_attention(model: Any, name: str) -> None:
    """Switch the attention implementation of a loaded model."""
    if model.config._attn_implementation != name:
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name, f"{name} was not taken"


@contextmanager
def plain(model: Any) -> Iterator[Callable[..., torch.Tensor]]:
    """Plain `transformers`, one sequence at a time, to the model's own logits.

    What is given takes [T] token ids, their types or None, and the places that the item gives
    (a model that `Reads.GATE` or `Reads.MARKS`) or None.

    Eager attention, which every architecture defines itself by. While it lasts there is
    no padding token, so that the last true token is read even when it equals that.
    """
    config = model.config.get_text_config()
    before, pad = model.config._attn_implementation, getattr(config, "pad_token_id", None)
    use_attention(model, "eager")
    config.pad_token_id = None
    try:
        yield lambda tokens, types=None, given=None: _plain_logits(model, tokens, types, given)
    finally:
        config.pad_token_id = pad
        use_attention(model, before)


def _plain_logits(
    model: Any, tokens: TokenArray, types: TokenArray | None, given: Places | None
) -> torch.Tensor:
    rows = {"input_ids": tokens} | ({} if types is None else {"token_type_ids": types})
    more = {} if given is None else {"readout": torch.from_numpy(given)}
    with torch.inference_mode():
        logits: torch.Tensor = model(
            **{
                k: torch.from_numpy(v.astype(np.int64)).to(model.device)[None]
                for k, v in rows.items()
            },
            **more,
        ).logits[0]
        return logits.float().cpu()
