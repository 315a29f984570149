"""The policy as the learner computes it: log-probabilities of response tokens, never all logits.

Weights are float32; with `dtype=bfloat16` the computation is autocast. Dropout is off.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel

from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.models.language_model import (
    drop_dropout,
    load_lm,
    plain_attention,
    unwrapped,
    with_lora,
)
from guerdon.trainer.rl.learner import packing
from guerdon.trainer.rl.learner.algorithms.base import ValueModel
from guerdon.trainer.rl.learner.packing import PackedRow
from guerdon.trainer.rl.learner.packing_check import Probe
from guerdon.trainer.rl.settings import RunSettings

logger = logging.getLogger(__name__)

CHUNK = 512
"""Positions whose logits over the whole vocabulary exist at once."""


class Computed(NamedTuple):
    """Numbers of the M response tokens of a row, float32 (float64 where the weights are)."""

    logprobs_M: Tensor
    """log π at the sampling temperature."""
    entropy_M: Tensor
    values_M: Tensor | None
    """V of the state before each token."""


class PolicyModel(nn.Module):
    """A causal language model, and where it is asked for a value model.

    Args:
        lm: of `transformers`, perhaps with LoRA around it.
        settings: of the run.
        with_values: whether there is a value model.
        own: the trunk of a value network of its own.
    """

    value_offset: Tensor
    """Added to all values: the mean return of the first step, whatever the head says."""

    def __init__(
        self,
        lm: nn.Module,
        settings: RunSettings,
        *,
        with_values: bool = False,
        own: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.temperature = settings.temperature
        self.reduced = settings.dtype == "bfloat16"
        """Whether it is computed in bfloat16."""
        self.packed = True
        """Whether the model's attention may be replaced; see `agrees`."""
        self.value_trunk = own
        self.value_head: nn.Linear | None = None
        if with_values:
            self.value_head = nn.Linear(unwrapped(lm).config.get_text_config().hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            # What values begin at. Not in the bias, which FSDP2 shards and holds in two copies.
            self.register_buffer("value_offset", torch.zeros(()))

    def forward(self, row: PackedRow, with_values: bool = True) -> Computed:
        """What the row says of its response tokens."""
        with self.autocast(row.ids_L.device):
            hidden_MD = self._hidden(_decoder(self.lm), row)[row.predict_M]
            logprobs_M, entropy_M = self._logprobs(hidden_MD, row.targets_M)
            values_M = None
            if self.value_head is not None and with_values:
                if self.value_trunk is not None:
                    hidden_MD = self._hidden(self.value_trunk, row)[row.predict_M]
                with torch.autocast(row.ids_L.device.type, enabled=False):
                    values_M = self.value_head(_full(hidden_MD))[:, 0] + self.value_offset
        return Computed(logprobs_M, entropy_M, values_M)

    @property
    def _no_split_modules(self) -> list[str]:
        """Layers that FSDP2 shards one by one, unless its settings name others."""
        wanted = set(unwrapped(self.lm)._no_split_modules or ())
        return sorted(wanted & {type(module).__name__ for module in self.modules()})

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Computes in bfloat16, where the settings say so."""
        return torch.autocast(device.type, torch.bfloat16) if self.reduced else nullcontext()

    def _hidden(self, decoder: nn.Module, row: PackedRow) -> Tensor:
        """[L, D]."""
        how: dict[str, Any] = {"guerdon_blocks": row.blocks} if self.packed else {}
        hidden: Tensor = decoder(
            input_ids=row.ids_L[None], position_ids=row.positions_L[None], use_cache=False, **how
        ).last_hidden_state
        return hidden[0]

    def _logprobs(self, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        """Chunk by chunk; in the backward pass each chunk's logits are computed again."""
        found = []
        for at in range(0, len(targets_M), CHUNK):
            chunk = hidden_MD[at : at + CHUNK], targets_M[at : at + CHUNK]
            if torch.is_grad_enabled():
                found.append(checkpoint(self._chunk, *chunk, use_reentrant=False))
            else:
                found.append(self._chunk(*chunk))
        logprobs, entropies = zip(*found, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _chunk(self, hidden_CD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
        base = unwrapped(self.lm)
        config = base.config.get_text_config()
        logits_CV = _full(base.get_output_embeddings()(hidden_CD))
        logits_CV = logits_CV * (getattr(config, "logit_scale", None) or 1.0)  # Cohere
        logits_CV = logits_CV / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        if cap:
            logits_CV = torch.tanh(logits_CV / cap) * cap
        logprobs_CV = F.log_softmax(logits_CV / self.temperature, dim=-1)
        entropy_C = -(logprobs_CV.exp() * logprobs_CV).sum(-1)
        return logprobs_CV.gather(-1, targets_C[:, None])[:, 0], entropy_C


def _full(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is so already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def new_policy(folder: Path, settings: RunSettings, value: ValueModel | None = None) -> PolicyModel:
    """The policy to train, with its value model.

    Raises:
        TrainingError: it can't be loaded.
    """
    lm = load_lm(folder)
    own = None
    if value and value.kind == "own":
        own = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        ).eval()
        own.set_attn_implementation(plain_attention(own))
    if settings.lora_r:
        lm = with_lora(lm, settings.lora_r, settings.lora_alpha)
    model = PolicyModel(lm, settings, with_values=value is not None, own=own)
    drop_dropout(model)  # gradient checkpointing works in training mode only
    if settings.gradient_checkpointing:
        for part in (lm, own):
            if part is not None:
                part.gradient_checkpointing_enable({"use_reentrant": False})
                part.enable_input_require_grads()
    return model


def frozen(folder: Path, settings: RunSettings, *, like: PolicyModel) -> PolicyModel:
    """The reference, as the policy is computed: with the same rounding, so that KL begins at 0.

    Raises:
        TrainingError: it can't be loaded.
    """
    lm: Any = load_lm(folder)
    model = PolicyModel(lm, settings).requires_grad_(False)
    model.packed = like.packed
    if model.packed:
        lm.set_attn_implementation(packing.PACKED)
    return model.eval()


def switch_attention(model: PolicyModel, settings: RunSettings) -> None:
    """Replace the attention by that of packed rows, if a probe shows that it gives the same.

    Raises:
        TrainingError: not even one by one are the log-probabilities those of `transformers`.
    """
    packing.register()
    bases = [unwrapped(model.lm)] + ([model.value_trunk] if model.value_trunk is not None else [])
    before = [base.config._attn_implementation for base in bases]
    probe = Probe.of(model)
    reason = _why_not(bases[0], settings)
    if reason is None:
        for base in bases:
            base.set_attn_implementation(packing.PACKED)
        reason = probe.parts(model)
    if reason is None:
        return
    for base, name in zip(bases, before, strict=True):
        base.set_attn_implementation(name)
    model.packed = False
    if (worse := probe.parts(model)) is not None:
        raise TrainingError(
            f"{type(bases[0]).__name__} can't be trained: it computes its logits in a way that "
            f"isn't known here ({worse})"
        )
    logger.warning("samples are computed one by one, without packing: %s", reason)


def _why_not(base: Any, settings: RunSettings) -> str | None:
    """What no short probe would show."""
    config = base.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    if window and window < settings.max_prompt_tokens + settings.max_tokens:
        return "its sliding windows are shorter than the input"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds & {"dynamic", "longrope"}:
        return "its rotary embedding depends on the longest sequence of a pass"
    return None


def _decoder(lm: Any) -> nn.Module:
    base = unwrapped(lm)
    decoder: nn.Module = getattr(base, base.base_model_prefix)
    return decoder
