"""The model of a run: base with a one-number head, LoRA or frozen layers, merged at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging
from trl.trainer.reward_trainer import suppress_seqcls_warning

from guerdon.trainer import sharing
from guerdon.trainer.errors import SettingsError, TrainingError
from guerdon.trainer.settings import RewardSettings


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
                folder, num_labels=1, dtype=torch.float32,
                use_safetensors=True, trust_remote_code=False,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"can't load {folder} as a reward model: {reason}") from error
    if grow and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    return model


def max_positions(model: Any) -> int | None:
    """The longest sequence that the model takes, where its config says so."""
    value = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(value) if value else None


def prepare(model: Any, settings: RewardSettings) -> Any:
    """The model with LoRA around it, or with its lowest layers frozen, as the settings say.

    Raises:
        SettingsError: both are asked for, or the model has no such layers.
    """
    if settings.lora_r and settings.freeze_layers:
        raise SettingsError("lora_r and freeze_layers exclude each other: LoRA freezes all layers")
    if settings.freeze_layers:
        _freeze(model, settings.freeze_layers)
    if not settings.lora_r:
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    head = "score" if sharing.parts(model) else "classifier"
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha or 2 * settings.lora_r,
            lora_dropout=settings.lora_dropout,
            target_modules="all-linear",
            task_type=TaskType.SEQ_CLS,
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


def merged(model: Any) -> Any:
    """A plain model of `transformers`, with LoRA's weights added to those of the base."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers and datasets: our programs have their own."""
    shown = transformers_logging.is_progress_bar_enabled()
    mapped = not datasets.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        if mapped:
            datasets.enable_progress_bars()
