"""How much memory one process of a reinforcement-learning run will need."""

from __future__ import annotations

from typing import Any

from guerdon.trainer.common.models.memory import MemoryEstimate, measure
from guerdon.trainer.rl.learner.policy import CHUNK
from guerdon.trainer.rl.settings import RunSettings


def memory_estimate(settings: RunSettings, config: Any) -> MemoryEstimate:
    """What one process holds at the height of a step.

    Args:
        settings: of the run.
        config: of the policy, of `transformers`.

    Raises:
        TrainingError: there is no language model for the config.
    """
    tokens = settings.micro_batch_tokens
    return measure(config, settings.dtype, settings.lora_r).estimate(
        settings,
        tokens,
        min(CHUNK, tokens) if settings.chunks_logits else tokens,
        "a micro-batch",
        reference=settings.keeps_reference and not settings.lora_r,  # LoRA's is itself
        value_network=settings.trains_value_network,
    )
