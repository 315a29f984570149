"""The policy of RFT: a plain language model of `transformers`, as TRL wants it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from guerdon.client.policy_types import Canary, TensorSpec
from guerdon.trainer.errors import TrainingError
from guerdon.trainer.modelling import merged
from guerdon.trainer.rl.settings import RunSettings
from guerdon.trainer.rl.types import Floats, Ints, Sample

__all__ = [
    "adapted",
    "canary_probes",
    "load",
    "merged",
    "response_logprobs",
    "save",
    "specs",
    "tensors",
]

_BATCH_TOKENS = 512
"""In one pass that only measures: the whole vocabulary's logits of so many tokens are made."""


def load(folder: Path) -> Any:
    """The policy in float32.

    Raises:
        TrainingError: it can't be loaded.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"can't load {folder} as a policy: {reason}") from error
    model.config.use_cache = False
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def adapted(model: Any, settings: RunSettings) -> Any:
    """The model with LoRA around it, where the settings say so."""
    if not settings.lora_r:
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha or 2 * settings.lora_r,
            target_modules="all-linear",
            task_type=TaskType.CAUSAL_LM,
        ),
    )


def specs(model: Any, dtype: str) -> list[TensorSpec]:
    """The tensors of a merged model as a checkpoint names them, tied ones once.

    Args:
        model: without LoRA.
        dtype: to be published in: `bfloat16`, `float16` or `float32`.
    """
    return [TensorSpec(name, dtype, tuple(p.shape)) for name, p in model.named_parameters()]


def tensors(model: Any, dtype: str) -> Iterator[Tensor]:
    """The tensors of `specs`, in their order."""
    for parameter in model.parameters():
        yield parameter.detach().to(getattr(torch, dtype))


@torch.no_grad()
def canary_probes(model: Any, sequences: Sequence[Ints], dtype: str) -> list[Canary]:
    """Sequences with the model's own log-probabilities, as weights in `dtype` give them."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for ids_S in sequences:
        ids_1S = torch.from_numpy(ids_S.astype(np.int64))[None].to(device)
        with autocast(model, dtype):
            logits_1SV = model(input_ids=ids_1S, use_cache=False).logits
        logprobs = _picked(logits_1SV[:, :-1], ids_1S[:, 1:], 1.0)[0]
        found.append(Canary(ids_S.tolist(), logprobs.tolist()))
    return found


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


def save(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """A folder that transformers and vLLM load, with the weights as they were published.

    Args:
        model: without LoRA; its own weights are rounded to `dtype`.
        tokenizer: the policy's.
        folder: where.
        dtype: `bfloat16`, `float16` or `float32`.
    """
    model.config.use_cache = True
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def autocast(model: Any, dtype: str) -> AbstractContextManager[Any]:
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
    with autocast(model, dtype):
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
