"""ArmoRM-Llama3-8B-v0.1: 19 attributes, weighed by a network that reads the prompt.

Sources: config.json and the model card of RLHFlow/ArmoRM-Llama3-8B-v0.1 on the Hugging Face
hub; its modeling_custom.py in public copies; arXiv:2406.12845.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel

from guerdon.reward.adapters.base import PublishedNetwork
from guerdon.reward.adapters.gating import GatedAdapter, GatedHead, softmax_gate
from guerdon.reward.engine.heads import Reads


class _Gating(nn.Module):
    """Hidden layers with ReLU, an output layer, and the softmax."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.temperature = config.gating_temperature
        self.logit_scale = nn.Parameter(torch.ones(1))
        hidden = [config.gating_hidden_dim] * config.gating_n_hidden
        sizes = [config.hidden_size, *hidden, config.num_objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return softmax_gate(self.layers[-1](x), self.temperature, self.logit_scale)


class LlamaForRewardModelWithGating(PublishedNetwork, LlamaPreTrainedModel):  # type: ignore[misc]
    """A Llama body, a linear output for each attribute, and the gate."""

    reads = Reads.GATE

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.labels = 1 + config.num_objectives
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.zeros([config.num_objectives] * 2))
        self.gating = _Gating(config)
        self.post_init()

    def head(self) -> nn.Module:
        """The attributes, the gate, and the score."""
        matrix = self.reward_transform_matrix.data
        return GatedHead(self.regression_layer, self.gating, matrix, shows_transformed=False)


class ArmoRM(GatedAdapter):
    """ArmoRM-Llama3-8B-v0.1."""

    name = "ArmoRM"
    network = LlamaForRewardModelWithGating

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether there are no quantiles, which QRM has under the same class name."""
        return "num_quantiles" not in values
