"""How much memory one process of a reinforcement-learning run will need."""

from __future__ import annotations

from typing import Any

from guerdon.trainer.common.models.memory import PER_LOGIT, MemoryEstimate, measure
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
    shape = measure(config, settings.dtype, settings.lora_r)
    tokens = settings.micro_batch_tokens
    trained = shape.lora if settings.lora_r else shape.parameters
    own = settings.trains_value_network
    parts = shape.training(lora=bool(settings.lora_r))
    if (
        not settings.lora_r and settings.keeps_reference
    ):  # LoRA's reference is the policy without it
        parts["reference, float32"] = 4 * shape.parameters
    if own:
        parts["value network with gradients and moments"] = 16 * shape.trunk
    activations = shape.activations(tokens, checkpointing=settings.gradient_checkpointing)
    parts["activations of a micro-batch"] = (2 if own else 1) * activations
    positions = min(CHUNK, tokens) if settings.chunks_logits else tokens
    parts["logits and their gradients"] = PER_LOGIT * positions * shape.vocabulary
    return MemoryEstimate(shape.parameters, trained, parts)
