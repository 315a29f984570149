"""The policy of RFT: a plain language model of `transformers`, as TRL wants it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guerdon.trainer.modelling import merged
from guerdon.trainer.rl.export import Shape, as_checkpoint, as_weights
from guerdon.trainer.rl.policy import _with_lora, load_lm
from guerdon.trainer.rl.settings import RunSettings
from guerdon.trainer.rl.types import Floats, Ints, Sample
from guerdon.trainer.rl.weights import Weights

__all__ = ["adapted", "load", "merged", "response_logprobs", "save", "weights"]

_BATCH_TOKENS = 512
"""In one pass that only measures: the whole vocabulary's logits of so many tokens are made."""
_ALONE = SimpleNamespace(index=0)


def load(folder: Path) -> Any:
    """The policy in float32.

    Raises:
        TrainingError: it can't be loaded.
    """
    return load_lm(folder).to("cuda" if torch.cuda.is_available() else "cpu")


def adapted(model: Any, settings: RunSettings) -> Any:
    """The model with LoRA around it, where the settings say so."""
    return _with_lora(model, settings) if settings.lora_r else model


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
    shape = Shape.of(model)
    tensors = _published(model, shape, dtype, computed)
    canaries = shape.canaries(model, tensors, sequences, _ALONE)
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
    shape = Shape.of(model)
    shape.save(model, _published(model, shape, dtype, computed), folder, dtype)
    tokenizer.save_pretrained(folder)


def _published(model: Any, shape: Shape, dtype: str, computed: str) -> dict[str, Tensor]:
    state = {f"lm.{name}": tensor for name, tensor in model.state_dict().items()}
    return shape.published(state, dtype, computed=computed)


@torch.no_grad()
def response_logprobs(
    model: Any, samples: Sequence[Sample], *, temperature: float, dtype: str
) -> list[Floats]:
    """log π of each response token of each sample, float32 [T].

    Args:
        model: with or without LoRA.
        samples: in any order.
        temperature: logits are divided by it.
        dtype: of the computation.
    """
    model.eval()
    order = sorted(range(len(samples)), key=lambda i: _length(samples[i]))
    found: dict[int, Floats] = {}
    while order:
        batch = [order.pop()]  # the longest first: what fits beside it is known
        while order and (len(batch) + 1) * _length(samples[batch[0]]) <= _BATCH_TOKENS:
            batch.append(order.pop())
        rows = _batch_logprobs(model, [samples[i] for i in batch], temperature, dtype)
        found.update(zip(batch, rows, strict=True))
    return [found[i] for i in range(len(samples))]


def _autocast(model: Any, dtype: str) -> AbstractContextManager[Any]:
    """Computes in `dtype` with weights in float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=getattr(torch, dtype))


def _length(sample: Sample) -> int:
    return len(sample.prompt_ids_P) + sample.tokens


def _batch_logprobs(
    model: Any, samples: Sequence[Sample], temperature: float, dtype: str
) -> list[Floats]:
    """Of samples in rows of L tokens, padded on the right: causal attention never sees that."""
    device = next(model.parameters()).device
    longest = max(map(_length, samples))
    ids_BL = torch.zeros((len(samples), longest), dtype=torch.long)
    real_BL = torch.zeros_like(ids_BL)
    for i, sample in enumerate(samples):
        ids = np.concatenate([sample.prompt_ids_P, sample.response_ids_T])
        ids_BL[i, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        real_BL[i, : len(ids)] = 1
    ids_BL = ids_BL.to(device)
    with _autocast(model, dtype):
        logits_BLV = model(
            input_ids=ids_BL, attention_mask=real_BL.to(device), use_cache=False
        ).logits
    logprobs = _picked(logits_BLV[:, :-1], ids_BL[:, 1:], temperature)
    begins = [len(sample.prompt_ids_P) - 1 for sample in samples]
    return [
        logprobs[i, begin : begin + sample.tokens]
        for i, (sample, begin) in enumerate(zip(samples, begins, strict=True))
    ]


def _picked(logits_BLV: Tensor, ids_BL: Tensor, temperature: float) -> Floats:
    logprobs_BLV = (logits_BLV.float() / temperature).log_softmax(-1)
    found: Floats = logprobs_BLV.gather(-1, ids_BL[..., None])[..., 0].cpu().numpy()
    return found
