"""INF-ORM-Llama3.1-70B: a Llama with a head of Linear, ReLU, Linear at the last token.

Sources: the model card of infly/INF-ORM-Llama3.1-70B on the Hugging Face hub, and
rewardbench/models/inform.py of allenai/reward-bench. Its config.json names no code: the card
asks users to paste the class.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaModel, LlamaPreTrainedModel

from guerdon.reward.adapters.base import Adapter, PublishedNetwork, two_layers
from guerdon.reward.engine.heads import Reads
from guerdon.reward.types import ModelKind


class INFORMForSequenceClassification(PublishedNetwork, LlamaPreTrainedModel):  # type: ignore[misc]
    """A Llama body and a two-layer head."""

    reads = Reads.LAST
    labels = 1

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = two_layers(config.hidden_size, self.labels)
        self.post_init()


class INFORM(Adapter):
    """INF-ORM-Llama3.1-70B."""

    name = "INF-ORM"
    architecture = "INFORMForSequenceClassification"
    kind = ModelKind.SEQUENCE
    code = (architecture,)
    network = INFORMForSequenceClassification
