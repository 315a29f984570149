"""What one process of a run holds in memory, from the policy's config alone.

Weights are counted exactly, and what the backward pass keeps for each token is counted on fake
tensors, which have shapes and types but no memory. What is left out: the framework itself, the
allocator's slack, and anything another rank would hold under FSDP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.report import say

GIB = 2**30
_SHORT, _LONG = 128, 256
"""Tokens of the two fake sequences whose difference is what a token costs."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by what holds them, in one process that holds all weights."""

    parameters: int
    """Weights of the policy."""
    trainable: int
    """The weights, of the policy or of LoRA, that are trained."""
    parts: dict[str, int]
    """Bytes by name."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


PER_LOGIT = 20
"""Bytes: log-probability, probability, and the gradients of logits on their way, float32."""


def show_memory(found: MemoryEstimate, console: Console) -> None:
    """The estimate as a table."""
    table = Table("memory of one process", "GiB")
    table.columns[1].justify = "right"
    for name, size in found.parts.items():
        table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row("about", f"{found.total / GIB:.2f}")
    console.print(table)
    say(console, f"{found.parameters:,} weights, {found.trainable:,} trained")
    say(
        console,
        "Not counted: libraries (about 0.5 GiB) and what the allocator keeps. On CPUs, peaks half "
        "as high again were seen: allow for them.",
    )


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """The sizes of a language model by which its memory goes."""

    parameters: int
    """Weights."""
    trunk: int
    """Weights without the language model's head."""
    lora: int
    """Weights of LoRA, beside them."""
    layers: int
    vocabulary: int
    cast: int
    """Bytes of weights in the computation's type, beside those in float32."""
    per_token_layer: int
    """Bytes that a layer keeps of each token for the backward pass."""
    per_layer_input: int
    """Bytes of a layer's input, which is all that checkpointing keeps."""

    def estimate(
        self,
        settings: Any,
        tokens: int,
        positions: int,
        batch: str,
        *,
        reference: bool,
        value_network: bool = False,
    ) -> MemoryEstimate:
        """What one process holds at the height of an optimiser step.

        Args:
            settings: of the run.
            tokens: of one forward pass.
            positions: those of them whose logits exist at once.
            batch: what the tokens are.
            reference: whether a second policy is held.
            value_network: whether a network as large as the policy is trained beside it.
        """
        trained = self.lora if settings.lora_r else self.parameters
        # With checkpointing, what is kept of each layer is its input, and one layer is alive.
        checkpointed = settings.gradient_checkpointing
        kept = self.per_layer_input * self.layers if checkpointed else 0
        alive = 1 if checkpointed else self.layers
        activations = tokens * (kept + alive * self.per_token_layer)
        parts = {
            "weights, float32": 4 * (self.parameters + self.lora),
            "gradients, float32": 4 * trained,
            "AdamW's two moments, float32": 8 * trained,
            "weights cast for one pass": self.cast,
        }
        if reference:
            parts["reference, float32"] = 4 * self.parameters
        if value_network:
            parts["value network with gradients and moments"] = 16 * self.trunk
        parts[f"activations of {batch}"] = (2 if value_network else 1) * activations
        parts["logits and their gradients"] = PER_LOGIT * positions * self.vocabulary
        return MemoryEstimate(self.parameters, trained, parts)


_ATTENTION = "guerdon_memory_estimate"


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    """Attention without a mask or repeated keys, as `transformers` makes only of real tensors."""
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def measure(config: Any, dtype: str, lora_r: int) -> ModelMemory:
    """Build the model without memory, and see what it keeps of a token.

    Args:
        config: of the policy, of `transformers`.
        dtype: of the computation, `bfloat16` or `float32`.
        lora_r: rank of LoRA; 0 for none.

    Raises:
        TrainingError: there is no language model for the config.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)
    text = config.get_text_config()
    amp = dtype == "bfloat16"
    try:
        with FakeTensorMode():
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=_ATTENTION
            )
            sizes = [_kept(model, length, amp) for length in (_SHORT, _LONG)]
            parameters = sum(weight.numel() for weight in model.parameters())
            trunk = sum(weight.numel() for weight in model.base_model.parameters())
            lora = _lora(model, lora_r)
    except (ValueError, RuntimeError, TypeError) as error:
        raise TrainingError(f"can't estimate the memory of {config.model_type}: {error}") from error
    per_token = (sizes[1] - sizes[0]) // (_LONG - _SHORT)
    layers = int(text.num_hidden_layers)
    return ModelMemory(
        parameters=parameters,
        trunk=trunk,
        lora=lora,
        layers=layers,
        vocabulary=int(text.vocab_size),
        cast=max(0, sizes[0] - per_token * _SHORT),
        per_token_layer=per_token // layers,
        per_layer_input=4 * int(text.hidden_size),
    )


def _kept(model: Any, length: int, amp: bool) -> int:
    """Bytes that the layers keep for the backward pass over a sequence, weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros((1, length), dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        model.eval().base_model(input_ids=ids, use_cache=False)
    return sum(sizes.values())


def _lora(model: Any, rank: int) -> int:
    """Weights that LoRA of all linear layers adds."""
    if not rank:
        return 0
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)
