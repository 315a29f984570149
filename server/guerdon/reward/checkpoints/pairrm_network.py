"""The network of PairRM; see `pairrm`. Import it only where one is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Model,
    DebertaV2PreTrainedModel,
)

from guerdon.reward.checkpoints.pairrm import margins, marks_of


class DebertaV2PairRM(DebertaV2PreTrainedModel):  # type: ignore[misc]
    """The margin of the first answer over the second, from the hidden states at the marks."""

    base_model_prefix = "pretrained_model"

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

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Margins [B, 1] of token ids [B, T], each row with every mark once."""
        hidden = self.pretrained_model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        at_marks = [hidden[input_ids == mark] for mark in marks_of(self.config)]
        return SequenceClassifierOutput(logits=margins(self.head_layer, torch.cat(at_marks, -1)))
