"""What ArmoRM and QRM share: outputs for several attributes, weighed by the prompt.

A gating network reads the hidden state where the user's last turn ends, and gives a weight
to each attribute; the score is the weighted sum (ArmoRM, arXiv:2406.12845, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from guerdon.reward.adapters.base import AttributesAdapter
from guerdon.serving.errors import CheckpointRefused

GATE: Final = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""What ends the user's turn in Llama 3's chat template. The gate reads its first token, at its
last occurrence in the whole sequence."""
GATE_IDS: Final = (128009, 128006, 78191, 128007, 271)
"""The ids of `GATE` in Llama 3's vocabulary: what the published code looks for."""

HELPSTEER: Final = tuple(
    f"helpsteer-{name}"
    for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
)
OBJECTIVES: Final = (
    *HELPSTEER,
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""ArmoRM's attributes in the order of its head, from its model card; QRM's are the same."""

_NEEDED: Final = ("num_objectives", "gating_temperature", "gating_hidden_dim", "gating_n_hidden")


class GatedAdapter(AttributesAdapter):
    """A published Llama with a gate, in Llama 3's vocabulary."""

    architecture = "LlamaForRewardModelWithGating"
    code = ("modeling_custom.LlamaForRewardModelWithGating",)
    attributes = OBJECTIVES

    def read_config(self, values: Mapping[str, Any]) -> PretrainedConfig:
        """The config of a Llama with a gate.

        Raises:
            ValueError: a key is missing, or there are not as many attributes as are published.
        """
        lacking = [name for name in _NEEDED if name not in values]
        if lacking:
            raise ValueError(f"it does not say {', '.join(lacking)}")
        if values["num_objectives"] != len(OBJECTIVES):
            raise ValueError(
                f"num_objectives is {values['num_objectives']}, and the published model has "
                f"{len(OBJECTIVES)}"
            )
        return super().read_config(values)

    def gate(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The tokens of `GATE`, if they are those that the published code looks for.

        Raises:
            CheckpointRefused: they are others.
        """
        found = tuple(tokenizer(GATE, add_special_tokens=False)["input_ids"])
        published = GATE_IDS if len(tokenizer) > max(GATE_IDS) else found
        if found != published or tokenizer.unk_token_id in found:
            raise CheckpointRefused(
                f"the tokenizer of {folder} makes the tokens {list(found)} of {GATE!r}, where "
                f"the gate of {self.name} reads, and the published model's are "
                f"{list(GATE_IDS)}: restore its tokenizer"
            )
        return found


def softmax_gate(logits: torch.Tensor, temperature: float, scale: torch.Tensor) -> torch.Tensor:
    """Weights [N, A] of A attributes: softmax(logits / temperature) · scale."""
    return torch.softmax(logits / temperature, dim=1) * scale


class GatedHead(nn.Module):
    """Σ gate(prompt) · (values @ transform), and the values as the model publishes them.

    Args:
        values: hidden states [N, H] at the last token to raw attributes [N, A].
        gating: hidden states [N, H] at the gate to weights [N, A].
        transform: [A, A]; ArmoRM takes the attributes' correlation with length out by it.
        shows_transformed: whether the values are shown after the transform, not before.
    """

    def __init__(
        self,
        values: nn.Module,
        gating: nn.Module,
        transform: torch.Tensor,
        *,
        shows_transformed: bool,
    ) -> None:
        super().__init__()
        self.shows_transformed = shows_transformed
        self.values = values
        self.gating = gating
        self.transform = nn.Parameter(transform, requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, 2, H], the gate's and the last token's, to [N, 1 + A]."""
        values = self.values(rows[:, 1])
        transformed = values @ self.transform
        score = (self.gating(rows[:, 0]) * transformed).sum(dim=1, keepdim=True)
        return torch.cat([score, transformed if self.shows_transformed else values], dim=1)
