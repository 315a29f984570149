"""The model of a run: base with a one-number head, LoRA or frozen layers, merged at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from trl.trainer.reward_trainer import suppress_seqcls_warning

from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.models.language_model import drop_dropout
from guerdon.trainer.common.models.transformers_logging import errors_only
from guerdon.trainer.reward import shared_prefix as sharing
from guerdon.trainer.reward.settings import RewardModelSettings


def load_base(folder: Path, tokenizer: Any, *, grow: bool) -> Any:
    """The base with one output, in float32. A head that is there already is kept.

    Args:
        grow: a token was added to the tokenizer.

    Raises:
        TrainingError: the folder can't be loaded, or its head has more outputs.
    """
    try:
        with suppress_seqcls_warning():
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=1,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise _cant_load(folder, error) from error
    return _fitted(model, tokenizer, grow=grow)


def load_with_head(
    folder: Path, tokenizer: Any, *, grow: bool, outputs: Sequence[str], tokenwise: bool
) -> tuple[Any, bool]:
    """The base with a head of several outputs, in float32. A head of that size is kept.

    Args:
        grow: a token was added to the tokenizer.
        outputs: their names, which are saved in the config.
        tokenwise: the head reads every token (process rewards), not the last one.

    Returns:
        The model, and whether its head is new.

    Raises:
        TrainingError: the folder can't be loaded, or lacks more than the head.
    """
    auto: Any = AutoModelForTokenClassification if tokenwise else AutoModelForSequenceClassification
    try:
        with errors_only():
            model, found = auto.from_pretrained(
                folder,
                id2label=dict(enumerate(outputs)),
                label2id={name: i for i, name in enumerate(outputs)},
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise _cant_load(folder, error) from error
    # The report was silenced, so what it would have said is looked at here.
    new = set(found["missing_keys"]) | {key for key, *_ in found["mismatched_keys"]}
    prefix = f"{model.base_model_prefix}."
    body = sorted(
        key
        for key in new | set(found["unexpected_keys"])
        if key.startswith(prefix) and "pooler." not in key
    )
    if body:
        raise TrainingError(f"{folder} does not hold the weights of its config: see {body[0]!r}")
    return _fitted(model, tokenizer, grow=grow), bool(new)


def _cant_load(folder: Path, error: Exception) -> TrainingError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TrainingError(f"can't load {folder} as a reward model: {reason}")


def _fitted(model: Any, tokenizer: Any, *, grow: bool) -> Any:
    """The model, which knows the tokenizer's pad token and has embeddings for all tokens."""
    if grow and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with errors_only():  # about how the new rows begin: at the mean of the others
            model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    return model


def prepare(model: Any, settings: RewardModelSettings) -> Any:
    """The model with LoRA around it, or with its lowest layers frozen, as the settings say.

    Its own dropout is off; LoRA's is as the settings say.

    Raises:
        SettingsError: both are asked for, or the model has no such layers.
    """
    if settings.lora_r and settings.freeze_layers:
        raise SettingsError("lora_r and freeze_layers exclude each other: LoRA freezes all layers")
    if settings.freeze_layers:
        _freeze(model, settings.freeze_layers)
    drop_dropout(model)
    if not settings.lora_r:
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    head = "score" if sharing.parts(model) else "classifier"
    tokenwise = type(model).__name__.endswith("ForTokenClassification")
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha or 2 * settings.lora_r,
            lora_dropout=settings.lora_dropout,
            target_modules="all-linear",
            task_type=TaskType.TOKEN_CLS if tokenwise else TaskType.SEQ_CLS,
            modules_to_save=[head],
        ),
    )


def _freeze(model: Any, count: int) -> None:
    found = sharing.parts(model)
    layers = next(
        (m for m in found[0].children() if isinstance(m, nn.ModuleList)) if found else iter(()),
        None,
    )
    if layers is None or count > len(layers):
        have = "no layers that could be told apart" if layers is None else f"{len(layers)} layers"
        raise SettingsError(f"freeze_layers is {count}, but the model has {have}")
    model.get_input_embeddings().requires_grad_(False)
    for layer in layers[:count]:
        layer.requires_grad_(False)


def call_through_ddp(model: Any, compute: Callable[[Any], Tensor]) -> Tensor:
    """What `compute` makes of the model, as if it were the model's forward pass.

    DDP averages the gradients of what its own forward pass computed; of a decoder and a head that
    are called by themselves it knows nothing.

    Args:
        model: wrapped or not.
        compute: given the model without the wrapper.
    """
    if not isinstance(model, DistributedDataParallel):
        return compute(model)
    inner = model.module
    own = inner.forward

    def forward(_: None) -> Tensor:
        inner.forward = own  # which `compute` may call
        return compute(inner)

    inner.forward = forward
    try:
        found: Tensor = model(None)  # on a GPU DDP wants an argument to move there
    finally:
        inner.forward = own
    return found
