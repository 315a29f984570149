"""A plain language model of `transformers` as a policy: loaded, published, saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from guerdon.trainer.common.models.language_model import load_lm
from guerdon.trainer.common.models.weights_export import CheckpointExport, as_checkpoint, as_weights
from guerdon.trainer.common.processes import use_gpu
from guerdon.trainer.common.services.types import Ints
from guerdon.trainer.common.services.weights import Weights


def load(folder: Path) -> Any:
    """The policy in float32.

    Raises:
        TrainingError: it can't be loaded.
    """
    return load_lm(folder).to("cuda" if use_gpu() else "cpu")


def weights(
    model: Any, version: int, dtype: str, sequences: Sequence[Ints], *, computed: str
) -> Weights:
    """What is published of a model, with the log-probabilities that prove it.

    Args:
        model: without LoRA.
        version: what the weights shall be called.
        dtype: the sampler's: `bfloat16`, `float16` or `float32`.
        sequences: token ids of the canaries.
        computed: the dtype of the learner's computation.
    """
    export = CheckpointExport.of(model)
    tensors = _published(model, export, dtype, computed)
    canaries = export.canaries(model, tensors, sequences)
    return as_weights(version, as_checkpoint(model, tensors), canaries)


def save(model: Any, tokenizer: Any, folder: Path, dtype: str, *, computed: str) -> None:
    """A folder that transformers and vLLM load, with the weights as they were published.

    Args:
        model: without LoRA.
        tokenizer: the policy's.
        folder: where.
        dtype: `bfloat16`, `float16` or `float32`.
        computed: as for `weights`.
    """
    export = CheckpointExport.of(model)
    export.save(model, _published(model, export, dtype, computed), folder, dtype)
    tokenizer.save_pretrained(folder)


def _published(
    model: Any, export: CheckpointExport, dtype: str, computed: str
) -> dict[str, Tensor]:
    state = {f"lm.{name}": tensor for name, tensor in model.state_dict().items()}
    return export.published(state, dtype, computed=computed)
