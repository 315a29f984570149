"""Load the weights of an inspected checkpoint, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.checkpoints.model_config import auto_class, first_line
from guerdon.reward.checkpoints.weight_files import stamp, weight_files
from guerdon.serving.errors import CheckpointRefused


def load_weights(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The model of a checkpoint that is no ensemble, for inference.

    Args:
        checkpoint: as it was inspected.
        dtype: the number type to compute in.
        device: where.

    Raises:
        CheckpointRefused: a tensor is missing, unknown, of a wrong shape, or not finite; or
            the files changed since they were inspected.
    """
    assert not checkpoint.members, "load the members of an ensemble one by one"
    folder = checkpoint.folder
    try:
        model, report = _from_pretrained(
            checkpoint,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise CheckpointRefused(f"{folder} can't be loaded: {first_line(error)}") from error
    for key, meaning in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "holds tensors that the model does not know:"),
        ("mismatched_keys", "holds tensors of another shape:"),
        ("error_msgs", "can't be loaded:"),
    ):
        if report.get(key):
            found = sorted(str(name) for name in report[key])
            more = f" and {len(found) - 1} more" if found[1:] else ""
            raise CheckpointRefused(f"{folder} {meaning} {found[0]}{more}")
    _check_tied(folder, model)
    _check_finite(folder, model)
    _check_unchanged(checkpoint)
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def _from_pretrained(checkpoint: Checkpoint, **settings: Any) -> Any:
    """The model, and what `transformers` says of the loading."""
    adapter = checkpoint.adapter
    if adapter is None:
        auto = auto_class(checkpoint.architecture, checkpoint.config)
        return auto.from_pretrained(checkpoint.folder, **settings)
    settings["config"] = checkpoint.config
    if adapter.layout(checkpoint.config) is None:
        return adapter.network.from_pretrained(checkpoint.folder, **settings)
    state = adapter.convert(_tensors(checkpoint.folder), checkpoint.config)
    return adapter.network.from_pretrained(None, state_dict=state, **settings)


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a checkpoint, one at a time."""
    for path in weight_files(folder):
        with safe_open(str(path), framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                yield name, handle.get_tensor(name)


def _check_unchanged(checkpoint: Checkpoint) -> None:
    """The config is read again with the weights, and the revision must be that of both."""
    try:
        now = stamp(Path(name) for name, _, _ in checkpoint.stamp)
    except OSError:
        now = ()
    if now != checkpoint.stamp:
        raise CheckpointRefused(
            f"the files in {checkpoint.folder} changed while they were loaded: try again"
        )


def _check_tied(folder: Path, model: PreTrainedModel) -> None:
    """`transformers` leaves two tensors apart that the config ties, where their values differ."""
    head = model.get_output_embeddings()
    if head is None or not model.config.get_text_config().tie_word_embeddings:
        return
    if head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr():
        raise CheckpointRefused(
            f"config.json in {folder} says that the head is the embedding (tie_word_embeddings), "
            "but the weights hold two that differ: set it to false if both were trained, or save "
            "the model again"
        )


def _check_finite(folder: Path, model: PreTrainedModel) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # Masks and the like in buffers may hold -inf; a NaN is never meant.
        bad = ~torch.isfinite(tensor) if isinstance(tensor, torch.nn.Parameter) else tensor.isnan()
        if tensor.is_floating_point() and bool(bad.any()):
            raise CheckpointRefused(
                f"{name} in {folder} holds {int(bad.sum())} numbers that are not finite "
                f"(in {str(tensor.dtype).removeprefix('torch.')}): the training diverged, or the "
                "number type is too small for it"
            )
