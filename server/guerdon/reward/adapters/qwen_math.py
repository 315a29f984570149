"""Qwen2.5-Math-RM-72B, and Qwen2.5-Math-PRM-7B and -72B.

Both score with Linear, ReLU, Linear. The reward model reads the last token; the process
reward model has two outputs, "bad" and "good", at every `<extra_0>`, and publishes the
softmax probability of "good". The step scores here are the log-odds of the same two logits,
so that probability is their sigmoid.

Sources: config.json of Qwen/Qwen2.5-Math-RM-72B and of Qwen/Qwen2.5-Math-PRM-7B on the Hugging Face
hub, and the model cards; the heads as in vLLM's vllm/model_executor/models/qwen2_rm.py, which is
adapted from their modeling_qwen2_rm.py; arXiv:2501.07301.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import Qwen2Model, Qwen2PreTrainedModel

from guerdon.models import Manifest
from guerdon.reward.adapters.base import Adapter, PublishedNetwork, two_layers
from guerdon.reward.engine.heads import Reads
from guerdon.reward.types import ModelKind


class _Qwen2Score(PublishedNetwork, Qwen2PreTrainedModel):  # type: ignore[misc]
    """A Qwen2 body and a two-layer head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Qwen2Model(config)
        # The published classes set the width themselves: config.json does not give it.
        self.score = two_layers(config.hidden_size, self.labels)
        self.post_init()


class Qwen2ForRewardModel(_Qwen2Score):
    """One number at the last token."""

    reads = Reads.LAST
    labels = 1


class Qwen2ForProcessRewardModel(_Qwen2Score):
    """Two numbers at each step marker."""

    reads = Reads.STEPS
    labels = 2


class Qwen25MathRM(Adapter):
    """Qwen2.5-Math-RM-72B."""

    name = "Qwen2.5-Math-RM"
    architecture = "Qwen2ForRewardModel"
    model_type = "qwen2"
    kind = ModelKind.SEQUENCE
    code = ("configuration_qwen2_rm.Qwen2RMConfig", "modeling_qwen2_rm.Qwen2ForRewardModel")
    network = Qwen2ForRewardModel


class Qwen25MathPRM(Adapter):
    """Qwen2.5-Math-PRM-7B and -72B."""

    name = "Qwen2.5-Math-PRM"
    architecture = "Qwen2ForProcessRewardModel"
    model_type = "qwen2"
    kind = ModelKind.PROCESS
    code = ("configuration_qwen2_rm.Qwen2RMConfig", "modeling_qwen2_rm.Qwen2ForProcessRewardModel")
    network = Qwen2ForProcessRewardModel

    def fill(self, manifest: Manifest) -> Manifest:
        """The published step marker, unless guerdon.json says another."""
        if manifest.step_marker:
            return manifest
        return dataclasses.replace(manifest, kind="process", step_marker="<extra_0>")
