"""Language models of `transformers` as training takes them: safetensors, float32, perhaps LoRA."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from guerdon.models import ModelNotFound, resolve_model
from guerdon.trainer.common.errors import SettingsError, TrainingError


def load_lm(folder: Path) -> Any:
    """The language model, in evaluation mode.

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
    model.set_attn_implementation(plain_attention(model))
    return model.eval()


def find_policy(policy: str) -> tuple[Path, Any]:
    """The folder of a policy and its config.

    Args:
        policy: a folder, a hub name or an embedded model.

    Raises:
        TrainingError: there is none, or its config can't be read.
    """
    from transformers import AutoConfig

    try:
        folder = resolve_model(policy)
        if not (folder / "config.json").exists() and (folder / "final").is_dir():
            raise SettingsError(f"{policy} is a run's folder: its policy is {folder / 'final'}")
        return folder, AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ModelNotFound as error:
        raise TrainingError(str(error)) from error
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't read the config of {policy}: {error}") from error


def plain_attention(model: Any) -> str:
    """The fastest of `transformers`' own that leaves nothing out: SDPA knows no soft cap."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if model._supports_sdpa and capped is None else "eager"


def lora_config(lm: Any, rank: int, alpha: float = 0.0, dropout: float = 0.0) -> Any:
    """LoRA around all linear layers but the output's.

    Args:
        lm: of `transformers`.
        rank: of each layer's update.
        alpha: 0 is twice the rank.
        dropout: of the updates' inputs.
    """
    from peft import LoraConfig, TaskType
    from transformers.pytorch_utils import Conv1D

    return LoraConfig(
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type=TaskType.CAUSAL_LM,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.modules()),  # GPT-2
    )


def drop_dropout(model: nn.Module) -> None:
    """Switch the model's own dropout off for good; LoRA that is put around it later keeps its own.

    Probabilities are set to 0: evaluation mode would end with the trainer's next `model.train()`.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):  # of attention, which has no module for it
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def check_lora(model: Any) -> None:
    """Refuse LoRA that could not be merged in the end.

    Raises:
        TrainingError: a layer is of a kind that no checkpoint has room for.
    """
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and not isinstance(module.base_layer, (nn.Linear, Conv1D)):
            raise TrainingError(
                f"LoRA on {name} ({type(module.base_layer).__name__}) can't be merged into a "
                "checkpoint: train all weights (lora_r = 0)"
            )


def with_lora(lm: Any, rank: int, alpha: float = 0.0) -> Any:
    """The model with LoRA around it; it is changed in place.

    Raises:
        TrainingError: it could not be merged in the end.
    """
    from peft import get_peft_model

    model = get_peft_model(lm, lora_config(lm, rank, alpha)).eval()
    check_lora(model)
    return model


def unwrapped(lm: Any) -> Any:
    """The model of `transformers`, without LoRA's wrapper."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def without_lora(lm: Any) -> AbstractContextManager[Any]:
    """The first policy, for as long as the context lasts: only for models with LoRA."""
    found: AbstractContextManager[Any] = lm.disable_adapter()
    return found


def merged(model: Any) -> Any:
    """A plain model of `transformers`, with LoRA's weights added to those of the base."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def autocast(model: Any, dtype: str) -> AbstractContextManager[Any]:
    """A part that computes in `dtype`, over weights in float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=getattr(torch, dtype))
