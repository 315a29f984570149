"""The network of PairRM; see `pairrm`. Import it only where one is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Model,
    DebertaV2PreTrainedModel,
)

from guerdon.reward.adapters.base import PublishedNetwork
from guerdon.reward.engine.heads import Reads


class _Margins(nn.Module):
    """How much the first answer is preferred; the layers see either answer by itself."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, 3, H], the source's and both candidates', to [N, 1]."""
        source, first, second = rows.unbind(1)
        left, right = (self.layers(torch.cat([source, one], dim=-1)) for one in (first, second))
        margins: torch.Tensor = (left - right).mean(dim=-1, keepdim=True)
        return margins


class DebertaV2PairRM(PublishedNetwork, DebertaV2PreTrainedModel):  # type: ignore[misc]
    """A DeBERTa body, and layers that read the prompt's mark with either answer's."""

    base_model_prefix = "pretrained_model"
    reads = Reads.MARKS
    labels = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Dropout(config.drop_out),
            nn.Linear(2 * width, width),
            nn.Tanh(),
            nn.Dropout(config.drop_out),
            nn.Linear(width, config.n_tasks),
        )
        self.post_init()

    def head(self) -> nn.Module:
        """The margin."""
        return _Margins(self.head_layer)
