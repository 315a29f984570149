"""Whether several models read a text alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from guerdon.models import MANIFEST_NAME, Manifest
from guerdon.serving.errors import CheckpointRefused

if TYPE_CHECKING:
    from guerdon.reward.checkpoints.checkpoint import Checkpoint


def _sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """How many tokens, and how many token types, the model tells apart."""
    config = checkpoint.config.get_text_config()
    return int(config.vocab_size), int(getattr(config, "type_vocab_size", None) or 0)


def _reading(checkpoint: Checkpoint) -> tuple[object, ...]:
    """What decides how a text becomes tokens."""
    tokenizer = checkpoint.tokenizer
    inputs = tuple(tokenizer.model_input_names)
    added = checkpoint.manifest.double_bos, checkpoint.ending_id
    return _rules(checkpoint), inputs, tuple(sorted(tokenizer.special_tokens_map.items())), added


def _rules(checkpoint: Checkpoint) -> object:
    tokenizer = checkpoint.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())


def check_members(folder: Path, manifest: Manifest, members: list[Checkpoint]) -> None:
    """An ensemble's members read the same tokens, differ, and can be compared where they must.

    Raises:
        CheckpointRefused: they don't; names the member.
    """
    names = manifest.members
    first, seen = members[0], dict[str, str]()
    for name, member in zip(names, members, strict=True):
        if manifest.aggregation != "mean" and member.manifest.mean is None:
            raise CheckpointRefused(
                f"the member {name!r} of {folder} has no mean in its {MANIFEST_NAME}: aggregation "
                f"{manifest.aggregation} compares the members' scores, which have one zero only "
                "once each loses its mean over the training set"
            )
        if member.revision in seen:
            raise CheckpointRefused(
                f"the members {seen[member.revision]!r} and {name!r} of {folder} are the same model"
            )
        seen[member.revision] = name
        same = (
            ("chat template", member.chat_template_hash == first.chat_template_hash),
            ("tokenizer", _reading(member) == _reading(first)),
            ("vocabulary", _sizes(member) == _sizes(first)),
        )
        for what, equal in same:
            if not equal:
                raise CheckpointRefused(
                    f"the member {name!r} of {folder} has another {what} than {names[0]!r}: all "
                    "members must read a text alike"
                )


def check_same_reading(
    folder: Path, manifest: Manifest, policy: Checkpoint, reference: Checkpoint
) -> None:
    """The reference can judge the tokens that the policy was trained on.

    The policy's tokenizer makes the tokens for both, as in training, so a token must mean the same
    to both. How each would cut a text into tokens is left aside: training saves the tokenizer with
    the rules and the padding that `transformers` gave it, and a published folder has its own.
    Training may also bring a chat template of its own: another one is taken where the manifest
    names that of the policy.

    Raises:
        CheckpointRefused: they part; says in what.
    """
    if manifest.template_hash not in ("", policy.chat_template_hash):
        raise CheckpointRefused(
            f"the chat template of {folder}'s policy is not the one that {MANIFEST_NAME} names"
        )
    other_template = policy.chat_template_hash != reference.chat_template_hash
    for what, different in (
        ("tokenizer", _token_meanings(policy) != _token_meanings(reference)),
        ("vocabulary (vocab_size)", _sizes(policy) != _sizes(reference)),
        ("chat template", other_template and not manifest.template_hash),
    ):
        if different:
            raise CheckpointRefused(
                f"the policy and the reference of {folder} differ in their {what}: both must read "
                "a text alike" + (_HINT if what == "chat template" else "")
            )


_HINT = (
    "; if the policy was trained with a template of its own, give its hash as template_hash in "
    f"{MANIFEST_NAME}"
)


def _token_meanings(checkpoint: Checkpoint) -> object:
    """What every token id stands for."""
    tokenizer = checkpoint.tokenizer
    return tokenizer.get_vocab(), tokenizer.eos_token_id, tokenizer.bos_token_id
