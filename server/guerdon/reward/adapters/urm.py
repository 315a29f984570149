"""URM-LLaMa-3.1-8B: a mean and a spread for each of five attributes, and their weights.

The head gives a normal distribution for each attribute, of which the score uses the mean; a
second network gives the weights, from the same token.

Sources: python/sglang/srt/models/llama_reward.py of sgl-project/sglang, which serves
LxzGordon/URM-LLaMa-3.1-8B, and that model's card on the Hugging Face hub; arXiv:2410.00847.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel, PretrainedConfig

from guerdon.reward.adapters.base import AttributesAdapter, PublishedNetwork
from guerdon.reward.adapters.gating import HELPSTEER
from guerdon.reward.engine.heads import Reads


class _Weights(nn.Module):
    """The network of the weights, under the checkpoint's names (`weights.fc.…`)."""

    def __init__(self, hidden: int, attributes: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(hidden, hidden),
            nn.SELU(),
            nn.Linear(hidden, hidden),
            nn.SELU(),
            nn.Linear(hidden, attributes),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        weights: torch.Tensor = self.fc(rows)
        return weights


class _WeightedMeans(nn.Module):
    """Σ weight · mean, and the means: rows [N, H] to [N, 1 + A]."""

    def __init__(self, score: nn.Module, weights: nn.Module) -> None:
        super().__init__()
        self.score = score
        self.weights = weights

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        # Mean and spread of each attribute stand side by side.
        means = self.score(rows)[:, 0::2]
        total = (self.weights(rows) * means).sum(dim=1, keepdim=True)
        return torch.cat([total, means], dim=1)


class LlamaForSequenceClassificationWithNormal_Weights(
    PublishedNetwork,
    LlamaPreTrainedModel,  # type: ignore[misc]
):
    """A Llama body, linear means and spreads, and the network of the weights."""

    reads = Reads.LAST

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.labels = 1 + config.num_labels // 2
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.weights = _Weights(config.hidden_size, config.num_labels // 2)
        self.post_init()

    def head(self) -> nn.Module:
        """The means, the weights, and the score."""
        return _WeightedMeans(self.score, self.weights)


class URM(AttributesAdapter):
    """URM-LLaMa-3.1-8B."""

    name = "URM"
    architecture = "LlamaForSequenceClassificationWithNormal_Weights"
    code = (architecture,)
    attributes = HELPSTEER
    network = LlamaForSequenceClassificationWithNormal_Weights

    def read_config(self, values: Mapping[str, Any]) -> PretrainedConfig:
        """A Llama's config with a mean and a spread of each attribute."""
        config = super().read_config(values)
        wanted = 2 * len(HELPSTEER)
        if config.num_labels != wanted:
            raise ValueError(
                f"num_labels is {config.num_labels}, and the published model has {wanted}: mean "
                f"and spread of {len(HELPSTEER)} attributes"
            )
        return config
