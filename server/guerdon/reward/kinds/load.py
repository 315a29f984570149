"""Loads a folder as a `RewardModel`, or refuses it and says why."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from guerdon.models import vocab_hash
from guerdon.models.devices import set_up_cuda
from guerdon.reward.checkpoints.checkpoint import Checkpoint, inspect_checkpoint
from guerdon.reward.checkpoints.weights import load_weights
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.encoding.encoders import new_encoder
from guerdon.reward.encoding.policy_encoder import PolicyEncoder
from guerdon.reward.engine.device import (
    interpret_error,
    release_memory,
    resolve_device,
    resolve_dtype,
)
from guerdon.reward.engine.language_head import VerdictNetwork
from guerdon.reward.engine.probes import Selected, select_engine
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds.ensemble import EnsembleReward
from guerdon.reward.kinds.network import (
    AttributesReward,
    ImplicitReward,
    NetworkReward,
    ProcessReward,
    SequenceReward,
    VerdictReward,
    WeighedReward,
)
from guerdon.reward.types import (
    DEFAULT_LABEL,
    ComputeMode,
    DeviceLost,
    EngineOutOfMemory,
    ModelInfo,
    ModelKind,
    RewardModel,
)
from guerdon.serving.errors import CheckpointRefused

_KINDS: Final[dict[ModelKind, type[NetworkReward]]] = {
    ModelKind.SEQUENCE: SequenceReward,
    ModelKind.ATTRIBUTES: AttributesReward,
    ModelKind.PROCESS: ProcessReward,
    ModelKind.PAIRWISE: SequenceReward,  # its sequences are comparisons, of one number each
    ModelKind.VERDICT: VerdictReward,
}


def load_model(
    folder: str | os.PathLike[str],
    *,
    name: str,
    settings: EngineSettings,
    check: Callable[[], None] = lambda: None,
) -> RewardModel:
    """Load a checkpoint, probe it, and return it ready to score.

    Args:
        folder: with config, tokenizer, safetensors and perhaps `guerdon.json`.
        name: under which it is served.
        settings: how to compute.
        check: called between the steps; what it raises ends the load.

    Raises:
        CheckpointRefused: it would give wrong scores, or cannot be trusted.
    """
    set_up_cuda()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    checkpoint = inspect_checkpoint(Path(folder))
    check()
    if checkpoint.kind is ModelKind.ENSEMBLE:
        return _load_ensemble(checkpoint, name, settings, check)
    if checkpoint.kind is ModelKind.IMPLICIT:
        return _load_implicit(checkpoint, name, settings, check)
    return _load_network(checkpoint, name, settings, check)


def _load_network(
    checkpoint: Checkpoint, name: str, settings: EngineSettings, check: Callable[[], None]
) -> NetworkReward:
    encoder = new_encoder(checkpoint)
    selected = _load_engine(checkpoint, settings, check)
    info = _network_info(checkpoint, name, selected)
    if isinstance(encoder, Encoder):
        info = replace(info, template_drops=encoder.template_drops)
    own = checkpoint.adapter is not None and checkpoint.kind is ModelKind.ATTRIBUTES
    kind = WeighedReward if own else _KINDS[checkpoint.kind]
    return kind(info, encoder, selected.engine)


def _load_engine(
    checkpoint: Checkpoint, settings: EngineSettings, check: Callable[[], None]
) -> Selected:
    check()
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    folder, name = checkpoint.folder, str(dtype).removeprefix("torch.")
    try:
        model: Any = load_weights(checkpoint, dtype=dtype, device=device).eval()
        if checkpoint.verdict_ids:
            model = VerdictNetwork(model, checkpoint.verdict_ids).eval()
        check()
        return select_engine(model, settings, checkpoint.max_tokens)
    except (CheckpointRefused, DeviceLost) as error:
        raise type(error)(_under(folder, str(error))) from error
    except (EngineOutOfMemory, RuntimeError, MemoryError) as error:
        meaning = interpret_error(error, device)
        if isinstance(meaning, DeviceLost):
            raise meaning from error
        if meaning is None:
            raise
        raise CheckpointRefused(
            f"{folder} does not fit in the memory of {device} as {name}{_room(device)}; while it "
            "is loaded and probed, half precision needs three times its weights"
        ) from error
    finally:
        release_memory(device)  # the float32 copy and the probes


def _under(folder: Path, sentence: str) -> str:
    return sentence if str(folder) in sentence else f"{folder}: {sentence}"


def _room(device: torch.device) -> str:
    """What a GPU has left, in words."""
    if device.type != "cuda":
        return ""
    free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(device))
    return f", which has {free:.1f} of {total:.1f} GiB free"


def _network_info(checkpoint: Checkpoint, name: str, selected: Selected) -> ModelInfo:
    model: Any = selected.engine.model
    cache = selected.engine.cache
    manifest = checkpoint.manifest
    process = checkpoint.kind is ModelKind.PROCESS
    return ModelInfo(
        name=name,
        revision=checkpoint.revision,
        kind=checkpoint.kind,
        architecture=checkpoint.architecture,
        max_tokens=checkpoint.max_tokens,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        compute_mode=selected.engine.mode,
        compute_mode_reason=selected.reason,
        probe_max_difference=selected.difference,
        preemptible=selected.engine.preemptible,
        prefix_cache_tokens=0 if cache is None else cache.tokens,
        chat_template_hash=checkpoint.chat_template_hash,
        base_model=manifest.base_model,
        mean=manifest.mean,
        std=manifest.std,
        attributes=checkpoint.attributes,
        step_aggregation=manifest.step_aggregation if process else "",
        step_marker=manifest.step_marker,
        parameters=selected.parameters,
        regression=_is_regression(model.config),
        label=_label(checkpoint),
        vocab_hash=""
        if manifest.double_bos or checkpoint.kind is ModelKind.VERDICT
        else vocab_hash(checkpoint.tokenizer.get_vocab()),
        probability=manifest.probability,
        ranks_only=checkpoint.kind is ModelKind.PAIRWISE,
    )


def _is_regression(config: Any) -> bool:
    """Whether a checkpoint says that its number is no logit, as other servers read it."""
    activation = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    activation = activation or getattr(config, "sbert_ce_default_activation_function", None)
    return (
        getattr(config, "problem_type", None) == "regression"
        or str(activation).rpartition(".")[2] == "Identity"
    )


def _label(checkpoint: Checkpoint) -> str:
    """What a checkpoint calls its one output; the default name where it has several."""
    labels = checkpoint.config.id2label or {}
    one = checkpoint.num_labels == len(labels) == 1
    return str(labels.get(0, DEFAULT_LABEL)) if one else DEFAULT_LABEL


def _load_ensemble(
    checkpoint: Checkpoint, name: str, settings: EngineSettings, check: Callable[[], None]
) -> EnsembleReward:
    """Load every member; `inspect_checkpoint` saw to it that they read the same tokens."""
    manifest = checkpoint.manifest
    members = [
        _load_network(
            replace(member, max_tokens=checkpoint.max_tokens), member_name, settings, check
        )
        for member_name, member in zip(manifest.members, checkpoint.members, strict=True)
    ]
    info = replace(
        _together(checkpoint, name, [member.info for member in members]),
        members=manifest.members,
        aggregation=manifest.aggregation,
    )
    return EnsembleReward(info, members, std_weight=manifest.std_weight)


def _load_implicit(
    checkpoint: Checkpoint, name: str, settings: EngineSettings, check: Callable[[], None]
) -> ImplicitReward:
    """Load policy and reference; `inspect_checkpoint` saw to it that they read the same tokens."""
    encoder, beta = PolicyEncoder(checkpoint), checkpoint.manifest.beta
    assert beta is not None, "the manifest asks for it"
    members = [replace(part, max_tokens=checkpoint.max_tokens) for part in checkpoint.members]
    policy, reference = (_load_engine(member, settings, check) for member in members)
    infos = [
        _network_info(member, role, selected)
        for role, member, selected in zip(
            ("policy", "reference"), members, (policy, reference), strict=True
        )
    ]
    info = replace(_together(checkpoint, name, infos), template_drops=encoder.template_drops)
    return ImplicitReward(info, encoder, policy.engine, reference.engine, beta)


def _together(checkpoint: Checkpoint, name: str, parts: Sequence[ModelInfo]) -> ModelInfo:
    """What is said of several models that give one reward."""
    padded = [part for part in parts if part.compute_mode is ComputeMode.PADDED]
    labels = {part.label for part in parts}
    return replace(
        parts[0],
        name=name,
        revision=checkpoint.revision,
        kind=checkpoint.kind,
        architecture=checkpoint.architecture,
        compute_mode=ComputeMode.PADDED if padded else ComputeMode.PACKED,
        compute_mode_reason="; ".join(f"{p.name}: {p.compute_mode_reason}" for p in padded),
        probe_max_difference=max(part.probe_max_difference for part in parts),
        preemptible=all(part.preemptible for part in parts),
        prefix_cache_tokens=min(part.prefix_cache_tokens for part in parts),
        base_model=checkpoint.manifest.base_model,
        mean=checkpoint.manifest.mean,
        std=checkpoint.manifest.std,
        attributes=(),
        step_aggregation="",
        step_marker="",
        regression=any(part.regression for part in parts),
        label=labels.pop() if len(labels) == 1 else DEFAULT_LABEL,
        parameters=sum(part.parameters for part in parts),
    )
