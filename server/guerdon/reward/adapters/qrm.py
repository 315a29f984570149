"""QRM-Llama3.1-8B: quantiles of 19 attributes, weighed by a network that reads the prompt.

An attribute's value is the mean of its quantiles, which estimates its expectation; the rest
is as in ArmoRM, but for a gating network with batch normalisation.

Sources: config.json of nicolinho/QRM-Llama3.1-8B on the Hugging Face hub; the code as its
author contributed it to allenai/reward-bench, rewardbench/models/qrm.py; arXiv:2409.10164.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel

from guerdon.reward.adapters.base import PublishedNetwork
from guerdon.reward.adapters.gating import GatedAdapter, GatedHead, softmax_gate
from guerdon.reward.engine.heads import Reads


class _Gating(nn.Module):
    """Several times Linear, ReLU, BatchNorm; an output layer, and the softmax."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.temperature = config.gating_temperature
        self.logit_scale = nn.Parameter(torch.ones(1))
        layers: list[nn.Module] = []
        inputs, hidden = config.hidden_size, config.gating_hidden_dim
        for place in range(config.gating_n_hidden):
            layers.append(nn.Linear(hidden if place else inputs, hidden, bias=False))
            layers += [nn.ReLU(), nn.BatchNorm1d(hidden)]
        self.layers = nn.ModuleList([*layers, nn.Linear(hidden, config.num_objectives)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return softmax_gate(x, self.temperature, self.logit_scale)


class _Expectations(nn.Module):
    """Hidden states [N, H] to the mean of each attribute's quantiles, [N, A]."""

    def __init__(self, quantiles: nn.Module, attributes: int) -> None:
        super().__init__()
        self.quantiles = quantiles
        self.attributes = attributes

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        quantiles: torch.Tensor = self.quantiles(rows)
        return quantiles.view(len(rows), self.attributes, -1).mean(dim=2)


class LlamaForQuantileRewardModelWithGating(PublishedNetwork, LlamaPreTrainedModel):  # type: ignore[misc]
    """A Llama body, linear quantiles of each attribute, and the gate."""

    reads = Reads.GATE

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.labels = 1 + config.num_objectives
        self.model = LlamaModel(config)
        outputs = config.num_objectives * config.num_quantiles
        self.regression_layer = nn.Linear(config.hidden_size, outputs, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.zeros([config.num_objectives] * 2))
        self.gating = _Gating(config)
        self.post_init()

    def head(self) -> nn.Module:
        """The expectations, the gate, and the score."""
        values = _Expectations(self.regression_layer, self.config.num_objectives)
        matrix = self.reward_transform_matrix.data
        return GatedHead(values, self.gating, matrix, shows_transformed=True)


class QRM(GatedAdapter):
    """QRM-Llama3.1-8B, and QRM-Llama3-8B."""

    name = "QRM"
    network = LlamaForQuantileRewardModelWithGating

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether there are quantiles: ArmoRM has the same class name."""
        return "num_quantiles" in values
