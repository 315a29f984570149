"""What an implicit reward's folder must say, and which policies and references are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.support import edit_json, edit_tensors, load
from tests.support.tiny import CHATML, EOS, tiny_checkpoint, tiny_tokenizer

from guerdon.models import Manifest, template_hash, weights_hash
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.policy_encoder import PolicyEncoder
from guerdon.reward.types import FormattedText, ModelKind, ScoreItem, Truncation
from guerdon.serving.errors import CheckpointRefused


def implicit(
    folder: Path,
    other: dict[str, Any] | None = None,
    template: str | None = CHATML,
    **manifest: Any,
) -> Path:
    """A folder with policy and reference in it, the reference with settings of its own."""
    tiny_checkpoint(folder / "p", "llama", seed=1, causal_lm=True, chat_template=template)
    settings = {"architecture": "llama", "seed": 2, "causal_lm": True, **(other or {})}
    tiny_checkpoint(folder / "r", **settings)
    values = {"kind": "implicit", "policy": "p", "reference": "r", "beta": 0.1, **manifest}
    Manifest(**values).write(folder)
    return folder


def test_a_policy_and_its_reference(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(implicit(tmp_path))
    assert checkpoint.kind is ModelKind.IMPLICIT
    assert [member.folder.name for member in checkpoint.members] == ["p", "r"]
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.max_tokens == 256
    for member in checkpoint.members:
        assert type(load(member)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("part", ["p", "r", "beta"])
def test_any_change_is_another_revision(part: str, tmp_path: Path) -> None:
    before = inspect_checkpoint(implicit(tmp_path)).revision
    if part == "beta":
        edit_json(tmp_path / "guerdon.json", beta=0.2)
    else:
        edit_tensors(
            tmp_path / part, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1e-3})
        )
    assert inspect_checkpoint(tmp_path).revision != before


def test_names_are_folders_beside_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to guerdon.json and never to where the server was started; `.` is the folder."""
    run = implicit(tmp_path / "run", policy="../run/p", reference=str(tmp_path / "run" / "r"))
    whole = inspect_checkpoint(run).members[0].revision
    (tmp_path / "elsewhere" / "p").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert inspect_checkpoint(run).members[0].revision == whole
    manifest = json.loads((run / "guerdon.json").read_text()) | {"policy": "."}
    (run / "p" / "guerdon.json").write_text(json.dumps(manifest))
    assert inspect_checkpoint(run / "p").members[0].folder == run / "p"


@pytest.mark.parametrize(
    ("other", "manifest", "reason"),
    [
        ({}, {"reference": "p"}, "the same model: every reward would be 0"),
        ({"seed": 1}, {}, "the same model"),
        ({}, {"reference": "./none"}, "there is no folder './none' beside"),
        ({"causal_lm": False}, {}, "is a LlamaForSequenceClassification: an implicit reward is"),
        ({"chat_template": CHATML + "\n"}, {}, "differ in their chat template: .*template_hash"),
        ({"chat_template": None}, {}, "differ in their chat template"),
        ({"vocab_size": 400}, {}, "differ in their vocabulary"),
        ({}, {"max_tokens": 1000}, "takes only 256"),
        ({"max_positions": 100}, {"max_tokens": 101}, "takes only 100"),
        ({}, {"template_hash": "ab" * 32}, "is not the one that guerdon.json names"),
        ({}, {"double_bos": True}, "which kind = implicit does not have"),
        ({}, {"members": ("p",)}, "gives members, which only kind = ensemble has"),
    ],
)
def test_what_does_not_fit(
    other: dict[str, Any], manifest: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointRefused, match=reason):
        inspect_checkpoint(implicit(tmp_path, other, **manifest))


def test_the_reference_must_be_the_one_that_was_trained_against(tmp_path: Path) -> None:
    """A run that was made anew since would give other rewards, and nobody would know."""
    tiny_checkpoint(tmp_path / "r", "llama", seed=2, causal_lm=True)
    folder = implicit(tmp_path, reference_hash=weights_hash(tmp_path / "r"))
    inspect_checkpoint(folder)
    tiny_checkpoint(tmp_path / "r", "llama", seed=3, causal_lm=True)
    with pytest.raises(CheckpointRefused, match=r"r are not those that .*guerdon\.json names"):
        inspect_checkpoint(folder)


def test_the_policys_own_template_is_taken_where_it_is_named(tmp_path: Path) -> None:
    """As when a base model without any is trained with --chat-template."""
    folder = implicit(tmp_path, {"chat_template": None}, template_hash=template_hash(CHATML))
    assert inspect_checkpoint(folder).chat_template_hash == template_hash(CHATML)


def test_a_padding_token_of_the_policys_is_no_other_tokenizer(tmp_path: Path) -> None:
    folder = implicit(tmp_path)
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    tokenizer.pad_token = EOS
    tokenizer.save_pretrained(folder / "p")
    inspect_checkpoint(folder)


def test_rules_that_only_the_reference_has_are_not_used(tmp_path: Path) -> None:
    """The policy's tokenizer makes the tokens for both, as in training.

    `transformers` 5 saves the tokenizer of a Llama with other rules than it was published with.
    """
    folder = implicit(tmp_path)
    edit_json(folder / "r" / "tokenizer.json", normalizer={"type": "Lowercase"})
    whole = inspect_checkpoint(folder)
    item = ScoreItem(FormattedText("A"), ("B C",))
    ids = PolicyEncoder(whole).encode(item, Truncation.REJECT).suffixes[0]
    text = whole.members[0].tokenizer("A")["input_ids"] + whole.tokenizer("B C")["input_ids"]
    assert ids.tolist() == text


@pytest.mark.parametrize("change", ["a token more", "another end token"])
def test_another_tokenizer(change: str, tmp_path: Path) -> None:
    folder = implicit(tmp_path)
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    if change == "a token more":
        tokenizer.add_tokens(["extra"])
    else:
        tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder / "r")
    with pytest.raises(CheckpointRefused, match="differ in their tokenizer"):
        inspect_checkpoint(folder)


def _lora(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _quantised(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"bits": 4})


def _code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Own"})


def _reward(folder: Path) -> None:
    Manifest(mean=0.0, std=1.0).write(folder)


@pytest.mark.parametrize("role", ["p", "r"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_lora, "is a LoRA adapter"),
        (_pickled, "pickle"),
        (_quantised, "is quantised"),
        (_code, "code is never run"),
        (_reward, "has a guerdon.json of its own"),
    ],
)
def test_both_are_checked_as_any_checkpoint(
    spoil: Callable[[Path], None], reason: str, role: str, tmp_path: Path
) -> None:
    folder = implicit(tmp_path)
    spoil(folder / role)
    with pytest.raises(CheckpointRefused, match=reason):
        inspect_checkpoint(folder)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    folder = implicit(tmp_path, {"tie_word_embeddings": True})
    reference = inspect_checkpoint(folder).members[1]
    model = load(reference)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    edit_tensors(folder / "r", lambda t: t.update({"lm_head.weight": torch.ones(360, 64)}))
    with pytest.raises(CheckpointRefused, match="two that differ"):
        load(inspect_checkpoint(folder).members[1])
    edit_tensors(folder / "r", lambda t: [t.pop(k) for k in [*t] if "embed" in k or "head" in k])
    with pytest.raises(CheckpointRefused, match="lacks"):
        load(inspect_checkpoint(folder).members[1])


def test_an_unknown_tensor(tmp_path: Path) -> None:
    """A value head, for example, which `transformers` would ignore."""
    folder = implicit(tmp_path)
    edit_tensors(folder / "p", lambda t: t.update({"v_head.weight": torch.ones(64)}))
    with pytest.raises(CheckpointRefused, match=r"does not know: v_head\.weight"):
        load(inspect_checkpoint(folder).members[0])


def test_a_policy_alone_is_still_no_reward_model(tmp_path: Path) -> None:
    folder = implicit(tmp_path)
    with pytest.raises(CheckpointRefused, match=r"language model .* \(kind = implicit\)"):
        inspect_checkpoint(folder / "p")
