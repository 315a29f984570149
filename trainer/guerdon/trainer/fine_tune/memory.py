"""How much memory one process of an SFT, DPO or ORPO run will need."""

from __future__ import annotations

from guerdon.trainer.common.memory import PER_LOGIT, MemoryEstimate, measure
from guerdon.trainer.common.trl.completions import BATCH_TOKENS
from guerdon.trainer.fine_tune.inputs import AlignInputs
from guerdon.trainer.fine_tune.settings import DPOSettings, ORPOSettings, SFTSettings


def memory_estimate(inputs: AlignInputs, processes: int = 1) -> MemoryEstimate:
    """What one process holds at the height of a step: a batch of the longest rows.

    Args:
        inputs: of the run.
        processes: that share a batch.

    Raises:
        TrainingError: there is no language model for the config.
    """
    settings = inputs.settings
    shape = measure(inputs.config, settings.dtype, settings.lora_r)
    sequences = settings.batch_size // processes * (1 if isinstance(settings, SFTSettings) else 2)
    tokens = sequences * inputs.train.longest
    parts = shape.training(lora=bool(settings.lora_r))
    if isinstance(settings, DPOSettings) and keeps_reference(settings):
        parts["reference, float32"] = 4 * shape.parameters
    parts["activations of a batch"] = shape.activations(
        tokens, checkpointing=settings.gradient_checkpointing
    )
    # ORPO makes all logits at once; the others' losses fold them up in tiles (TRL's fused head),
    # and then the most are made where held-out rows are measured.
    positions = tokens if isinstance(settings, ORPOSettings) else min(tokens, BATCH_TOKENS)
    parts["logits and their gradients"] = PER_LOGIT * positions * shape.vocabulary
    trained = shape.lora if settings.lora_r else shape.parameters
    return MemoryEstimate(shape.parameters, trained, parts)


def keeps_reference(settings: DPOSettings) -> bool:
    """Whether a second model is held: LoRA's reference is the policy without it."""
    return not (settings.lora_r or settings.precompute_reference)
