"""Judge a checkpoint before anything is scored with it.

    checkpoint = inspect_checkpoint(folder)                # reads headers, makes no tensors
    model = load_weights(checkpoint, dtype=…, device=…)    # `weights`: any missing key: refused

`transformers` fills what a checkpoint lacks with random numbers and drops what it does
not know, with a warning at most. Either gives wrong scores, so both are refused here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from guerdon.models import (
    MANIFEST_NAME,
    Manifest,
    ManifestError,
    ModelNotFound,
    resolve_model,
    unreadable,
    weights_hash,
)
from guerdon.reward.adapters import Adapter
from guerdon.reward.checkpoints.compatibility import check_members, check_same_reading
from guerdon.reward.checkpoints.consistency import (
    check_fields,
    check_template,
    longest_sequence,
    reward_kind,
    step_marker,
    verdict_tokens,
)
from guerdon.reward.checkpoints.model_config import (
    LANGUAGE_MODELS,
    check_config_file,
    check_tensors,
    make_skeleton,
    read_architecture,
    read_config,
)
from guerdon.reward.checkpoints.tokenizer import read_tokenizer
from guerdon.reward.checkpoints.weight_files import (
    all_files,
    content_hash,
    read_headers,
    stamp,
    weight_files,
)
from guerdon.reward.types import Attribute, ModelKind
from guerdon.serving.errors import CheckpointRefused


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that may be served: everything known of it short of its tensors."""

    folder: Path
    manifest: Manifest
    kind: ModelKind
    config: PretrainedConfig
    """An ensemble's is its first member's, an implicit reward's is its policy's; so is the
    tokenizer."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    architecture: str
    num_labels: int
    max_tokens: int
    revision: str
    chat_template_hash: str
    attributes: tuple[Attribute, ...] = ()
    step_marker_id: int | None = None
    """Process rewards: the token that ends a step."""
    ending_id: int | None = None
    """The token that is added to every sequence that does not end with it."""
    verdict_ids: tuple[int, ...] = ()
    """Verdicts: the tokens whose logits are read, the one for the response first."""
    gate_ids: tuple[int, ...] = ()
    """Gated models: the tokens at whose last occurrence the gate reads."""
    members: tuple[Checkpoint, ...] = ()
    """An ensemble's members; an implicit reward's policy and reference."""
    adapter: Adapter | None = field(default=None, repr=False)
    """What computes a published model that `transformers` does not have."""
    stamp: tuple[tuple[str, int, int], ...] = field(default=(), repr=False)
    """Sizes and times of the files when they were read."""


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Judge a folder by its config, manifest, tokenizer and the headers of its weights.

    Args:
        folder: as `resolve_model` gives it.

    Raises:
        CheckpointRefused: one sentence on what is wrong, and what to do about it.
    """
    folder = Path(folder)
    if denied := unreadable(folder):
        raise CheckpointRefused(denied)
    if not folder.is_dir():
        raise CheckpointRefused(f"there is no folder {folder}")
    try:
        manifest = Manifest.read(folder)
    except ManifestError as error:
        raise CheckpointRefused(f"{folder / MANIFEST_NAME} can't be used: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointRefused(f"{folder / MANIFEST_NAME} can't be read: {error}") from error
    if manifest is not None:
        check_fields(folder, manifest)
    if manifest is not None and manifest.kind == "ensemble":
        return _ensemble(folder, manifest)
    if manifest is not None and manifest.kind == "implicit":
        return _implicit(folder, manifest)
    if manifest is not None and manifest.kind == "verdict":
        return _single(folder, manifest, ModelKind.VERDICT)
    return _single(folder, manifest)


def _single(
    folder: Path, manifest: Manifest | None, language_kind: ModelKind | None = None
) -> Checkpoint:
    """A folder with one network.

    Args:
        manifest: the folder's own.
        language_kind: the kind, where it is a language model that the folder must hold.
    """
    adapter = check_config_file(folder)
    if language_kind is not None and adapter is not None:
        raise CheckpointRefused(
            f"{folder} is a reward model ({adapter.name}), and {LANGUAGE_MODELS[language_kind]}"
        )
    files = weight_files(folder)
    before = stamp(all_files(folder, files))
    headers = read_headers(files)
    config = read_config(folder, adapter)
    architecture = read_architecture(folder, config, adapter, kind=language_kind)
    if adapter is None:
        kind = language_kind or reward_kind(folder, architecture, config, manifest)
        manifest = manifest or Manifest()
    else:
        kind, manifest = adapter.kind, _completed(folder, adapter, manifest)
    skeleton = make_skeleton(folder, config, architecture, adapter)
    if language_kind is None:  # which tensors a language model may lack, its loading says
        check_tensors(folder, skeleton, headers, adapter)
    tokenizer = read_tokenizer(folder, own=adapter is not None and adapter.own_tokenizer)
    return Checkpoint(
        folder=folder,
        manifest=manifest,
        kind=kind,
        config=config,
        tokenizer=tokenizer,
        architecture=architecture,
        num_labels=int(config.num_labels) if adapter is None else adapter.labels,
        max_tokens=longest_sequence(folder, config, manifest, tokenizer, skeleton, adapter),
        revision=content_hash(folder, files),
        chat_template_hash=""
        if kind is ModelKind.VERDICT
        else check_template(folder, tokenizer, manifest),
        attributes=tuple(Attribute(name, float(w)) for name, w in manifest.attributes.items())
        if kind is ModelKind.ATTRIBUTES
        else (),
        step_marker_id=step_marker(folder, tokenizer, manifest)
        if kind is ModelKind.PROCESS
        else None,
        verdict_ids=verdict_tokens(folder, tokenizer, manifest, int(config.vocab_size))
        if kind is ModelKind.VERDICT
        else (),
        ending_id=None if adapter is None else adapter.ending(config),
        gate_ids=() if adapter is None else adapter.gate(folder, tokenizer),
        adapter=adapter,
        stamp=before,
    )


def _completed(folder: Path, adapter: Adapter, manifest: Manifest | None) -> Manifest:
    try:
        return adapter.complete(manifest)
    except CheckpointRefused as error:
        raise CheckpointRefused(f"{folder}: {error}") from error


def _ensemble(folder: Path, manifest: Manifest) -> Checkpoint:
    members = []
    for name in manifest.members:
        path = (folder / name).resolve()
        try:
            nested = Manifest.read(path) if path.is_dir() else None
        except ManifestError as error:
            raise CheckpointRefused(f"the member {name!r} of {folder}: {error}") from error
        kind = nested.kind if nested is not None else "sequence"
        member = inspect_checkpoint(path) if kind == "sequence" else None
        if member is None or member.kind is not ModelKind.SEQUENCE:
            raise CheckpointRefused(
                f"the member {name!r} of {folder} is of kind "
                f"{kind if member is None else member.kind.value}: an ensemble is made of "
                "sequence models"
            )
        members.append(member)
    check_members(folder, manifest, members)
    first = members[0]
    if manifest.template_hash not in ("", first.chat_template_hash):
        raise CheckpointRefused(
            f"the chat template of {folder}'s members is not the one that {MANIFEST_NAME} names"
        )
    whole = hashlib.sha256(content_hash(folder, []).encode())
    for member in members:
        whole.update(member.revision.encode())
    return Checkpoint(
        folder=folder,
        manifest=manifest,
        kind=ModelKind.ENSEMBLE,
        config=first.config,
        tokenizer=first.tokenizer,
        architecture=" + ".join(dict.fromkeys(member.architecture for member in members)),
        num_labels=1,
        max_tokens=_common_limit(folder, manifest, members),
        revision=whole.hexdigest(),
        chat_template_hash=first.chat_template_hash,
        members=tuple(members),
    )


def _common_limit(folder: Path, manifest: Manifest, members: Sequence[Checkpoint]) -> int:
    """The longest sequence that all of several models take, or less if the manifest says so."""
    limit = min(member.max_tokens for member in members)
    if manifest.max_tokens is not None and manifest.max_tokens > limit:
        raise CheckpointRefused(
            f"{folder}/{MANIFEST_NAME} says max_tokens = {manifest.max_tokens}, but a member takes "
            f"only {limit}"
        )
    return manifest.max_tokens or limit


def _implicit(folder: Path, manifest: Manifest) -> Checkpoint:
    names = (manifest.policy, manifest.reference)
    policy, reference = (_policy(folder, name) for name in names)
    if policy.revision == reference.revision:
        raise CheckpointRefused(
            f"the policy and the reference of {folder} are the same model: every reward would be 0"
        )
    if manifest.reference_hash and manifest.reference_hash != weights_hash(reference.folder):
        raise CheckpointRefused(
            f"the weights of {reference.folder} are not those that {folder / MANIFEST_NAME} names: "
            "the policy was trained against another reference; restore it"
        )
    check_same_reading(folder, manifest, policy, reference)
    whole = content_hash(folder, []) + policy.revision + reference.revision
    return replace(
        policy,
        folder=folder,
        manifest=manifest,
        architecture=" / ".join(dict.fromkeys((policy.architecture, reference.architecture))),
        max_tokens=_common_limit(folder, manifest, (policy, reference)),
        revision=hashlib.sha256(whole.encode()).hexdigest(),
        members=(policy, reference),
        stamp=(),
    )


def _policy(folder: Path, name: str) -> Checkpoint:
    """One of the two language models of an implicit reward."""
    try:
        path = resolve_model(name, beside=folder)
    except ModelNotFound as error:
        raise CheckpointRefused(f"{folder / MANIFEST_NAME}: {error}") from error
    if path != folder.resolve() and (path / MANIFEST_NAME).exists():
        raise CheckpointRefused(
            f"{folder / MANIFEST_NAME} names {name!r}, which has a {MANIFEST_NAME} of its own: a "
            "policy and a reference are plain language models"
        )
    return _single(path, None, ModelKind.IMPLICIT)
