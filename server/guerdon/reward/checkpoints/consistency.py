"""Whether the parts of a checkpoint fit each other: config, manifest, tokenizer and head."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from guerdon.models import MANIFEST_NAME, Manifest, template_hash
from guerdon.reward.adapters import Adapter, architectures
from guerdon.reward.checkpoints.model_config import is_tokenwise
from guerdon.reward.types import ModelKind
from guerdon.serving.errors import CheckpointRefused

_UNLIMITED = 10**9
"""Tokenizers without a limit say 10³⁰."""


def check_fields(folder: Path, manifest: Manifest) -> None:
    """Nothing is said that the kind would ignore."""
    for name, kind in (
        ("attributes", "attributes"),
        ("step_marker", "process"),
        ("members", "ensemble"),
        ("policy", "implicit"),
        ("reference", "implicit"),
        ("reference_hash", "implicit"),
        ("beta", "implicit"),
        ("question", "verdict"),
        ("instruction", "verdict"),
        ("yes_token", "verdict"),
        ("no_token", "verdict"),
        ("probability", "verdict"),
    ):
        if getattr(manifest, name) and manifest.kind != kind:
            raise CheckpointRefused(
                f"{folder / MANIFEST_NAME} gives {name}, which only kind = {kind} has, but says "
                f"kind = {manifest.kind}"
            )
    if manifest.double_bos and manifest.kind == "ensemble":
        raise CheckpointRefused(
            f"{folder / MANIFEST_NAME} is an ensemble's: double_bos stands in those of its members"
        )
    if manifest.double_bos and manifest.kind == "implicit":
        raise CheckpointRefused(
            f"{folder / MANIFEST_NAME} gives double_bos, which kind = implicit does not have: the "
            "template's BOS is all that a policy gets"
        )
    if manifest.kind == "verdict":
        for name, instead in (
            ("double_bos", "question, where every BOS is written out"),
            ("template_hash", "question; the chat template is not used"),
        ):
            if getattr(manifest, name):
                raise CheckpointRefused(
                    f"{folder / MANIFEST_NAME} gives {name}, which kind = verdict does not have: "
                    f"what the model reads is its {instead}"
                )


def reward_kind(
    folder: Path, architecture: str, config: PretrainedConfig, manifest: Manifest | None
) -> ModelKind:
    """The kind of reward, if head and manifest agree on it."""
    if manifest is not None and manifest.kind == ModelKind.PAIRWISE.value:
        raise CheckpointRefused(
            f"{folder}/{MANIFEST_NAME} says kind = pairwise, which needs a "
            f"{architectures(ModelKind.PAIRWISE)} model, but the checkpoint is a {architecture}"
        )
    tokenwise = is_tokenwise(architecture, config)
    labels = int(config.num_labels)
    if manifest is None and tokenwise:
        raise CheckpointRefused(
            f"{folder} scores tokens ({architecture}): a {MANIFEST_NAME} with kind = process and "
            "the step_marker must say at which ones"
        )
    kind = ModelKind(manifest.kind if manifest else "sequence")
    if (kind is ModelKind.PROCESS) != tokenwise:
        wanted = (
            "ForTokenClassification" if kind is ModelKind.PROCESS else ("ForSequenceClassification")
        )
        raise CheckpointRefused(
            f"{folder}/{MANIFEST_NAME} says kind = {kind.value}, which needs a {wanted} model, "
            f"but the checkpoint is a {architecture}"
        )
    if kind is ModelKind.ATTRIBUTES:
        expected = len(manifest.attributes) if manifest else 0
        if labels != expected:
            raise CheckpointRefused(
                f"{folder}/{MANIFEST_NAME} names {expected} attributes, but the head has "
                f"{labels} outputs (num_labels)"
            )
    elif labels != 1 and not (kind is ModelKind.PROCESS and labels == 2):
        # Two outputs at a step are "bad" and "good", as TRL's PRMTrainer has them.
        raise CheckpointRefused(
            f"{folder} has a head with {labels} outputs (num_labels; 2 is what transformers takes "
            "when nothing is said), and a reward is one number: train it with num_labels=1, or "
            f"name each output and its weight under attributes in {MANIFEST_NAME}"
        )
    return kind


def check_template(folder: Path, tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> str:
    """The hash of the template, if it is the one that the model was trained with."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise CheckpointRefused(
                f"{folder} has several chat templates ({', '.join(sorted(template))}) and no "
                "default: leave the one it was trained with"
            )
        template = template["default"]
    found = template_hash(template)
    if manifest.template_hash and found != manifest.template_hash:
        raise CheckpointRefused(
            f"the chat template of {folder} is not the one it was trained with "
            f"({MANIFEST_NAME} says {manifest.template_hash[:12]}…, the folder has "
            f"{f'{found[:12]}…' if found else 'none'}): restore it"
        )
    return found


def step_marker(folder: Path, tokenizer: PreTrainedTokenizerBase, manifest: Manifest) -> int:
    """The token that ends a step."""
    advice = "add it to the vocabulary before training"
    return _one_token(folder, tokenizer, "step_marker", manifest.step_marker, advice)


def verdict_tokens(
    folder: Path, tokenizer: PreTrainedTokenizerBase, manifest: Manifest, vocabulary: int
) -> tuple[int, ...]:
    """The tokens whose logits are read: the one for a response and perhaps the one against it.

    Args:
        vocabulary: how many tokens the model has a logit for.
    """
    named = {"yes_token": manifest.yes_token, "no_token": manifest.no_token}
    advice = "name the one that the model was trained to say"
    ids = {
        name: _one_token(folder, tokenizer, name, text, advice)
        for name, text in named.items()
        if text
    }
    for name, token in ids.items():
        if token >= vocabulary:
            raise CheckpointRefused(
                f"the {name} {named[name]!r} in {folder}/{MANIFEST_NAME} is the token {token}, and "
                f"the model has logits for {vocabulary} tokens"
            )
    if len(set(ids.values())) < len(ids):
        raise CheckpointRefused(
            f"yes_token and no_token in {folder}/{MANIFEST_NAME} are the same token: every score "
            "would be 0"
        )
    return tuple(ids.values())


def _one_token(
    folder: Path, tokenizer: PreTrainedTokenizerBase, name: str, text: str, advice: str
) -> int:
    """The token that a text of the manifest is."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise CheckpointRefused(
            f"the {name} {text!r} in {folder}/{MANIFEST_NAME} is not one token of the tokenizer "
            f"but {len(ids)}: {advice}"
            if len(ids) != 1
            else f"the {name} {text!r} in {folder}/{MANIFEST_NAME} is unknown to the tokenizer"
        )
    return int(ids[0])


def longest_sequence(
    folder: Path,
    config: PretrainedConfig,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerBase,
    skeleton: PreTrainedModel,
    adapter: Adapter | None,
) -> int:
    """The longest sequence: the manifest's, within what the positions allow."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    endless = None if adapter is None else adapter.longest(config)
    if endless is not None:
        return manifest.max_tokens or endless
    for name, module in skeleton.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1.
        table = isinstance(module, torch.nn.Embedding) and name.endswith("position_embeddings")
        if table and module.padding_idx is not None:
            positions = module.num_embeddings - int(module.padding_idx) - 1
    if manifest.max_tokens is not None:
        if positions is not None and manifest.max_tokens > positions:
            raise CheckpointRefused(
                f"{folder}/{MANIFEST_NAME} says max_tokens = {manifest.max_tokens}, but the model "
                f"has positions for {positions}"
            )
        return manifest.max_tokens
    advice = tokenizer.model_max_length
    limits = [int(n) for n in (positions, advice) if n is not None and 0 < n < _UNLIMITED]
    if not limits:
        raise CheckpointRefused(
            f"{folder} does not say how long a sequence may be: set max_tokens in {MANIFEST_NAME}"
        )
    return min(limits)
