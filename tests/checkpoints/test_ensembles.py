"""Members of an ensemble must read a text alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints.support import edit_tensors
from tests.support.tiny import CHATML, tiny_checkpoint, tiny_tokenizer

from guerdon.models import Manifest
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.types import ModelKind
from guerdon.serving.errors import CheckpointRefused


def ensemble(folder: Path, second: dict[str, Any], **manifest: Any) -> Path:
    tiny_checkpoint(folder / "a", "llama", seed=1)
    tiny_checkpoint(folder / "b", **{"architecture": "llama", "seed": 2, **second})
    values = {"kind": "ensemble", "members": ("a", "b"), **manifest}
    Manifest(**values).write(folder)
    return folder


def test_an_ensemble_of_two(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(ensemble(tmp_path, {"architecture": "gpt2"}))
    assert checkpoint.kind is ModelKind.ENSEMBLE
    assert [member.folder.name for member in checkpoint.members] == ["a", "b"]
    assert checkpoint.architecture == (
        "LlamaForSequenceClassification + GPT2ForSequenceClassification"
    )
    whole = checkpoint.revision
    edit_tensors(tmp_path / "b", lambda t: t.update({"score.weight": t["score.weight"] + 1}))
    assert inspect_checkpoint(tmp_path).revision != whole


@pytest.mark.parametrize(
    ("second", "manifest", "reason"),
    [
        ({"seed": 1}, {}, "the same model"),
        ({"chat_template": CHATML + "\n"}, {}, "another chat template"),
        ({"architecture": "bert", "chat_template": None}, {}, "another"),
        ({"num_labels": 2}, {}, "2 outputs"),
        ({}, {"members": ("a", "missing")}, "there is no folder"),
        ({}, {"max_tokens": 1000}, "takes only 256"),
        ({}, {"template_hash": "ab" * 32}, "chat template"),
        ({}, {"aggregation": "min"}, "'a' of .* has no mean in its guerdon.json"),
        ({}, {"double_bos": True}, "double_bos stands in those of its members"),
    ],
)
def test_members_that_do_not_fit(
    tmp_path: Path, second: dict[str, Any], manifest: dict[str, Any], reason: str
) -> None:
    folder = ensemble(tmp_path, second, **manifest)
    with pytest.raises(CheckpointRefused, match=reason):
        inspect_checkpoint(folder)


def test_members_with_another_tokenizer(tmp_path: Path) -> None:
    folder = ensemble(tmp_path, {})
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder / "b")
    with pytest.raises(CheckpointRefused, match="another tokenizer"):
        inspect_checkpoint(folder)


def test_an_ensemble_of_ensembles(tmp_path: Path) -> None:
    folder = ensemble(tmp_path, {})
    Manifest(kind="ensemble", members=("..",)).write(folder / "b")
    with pytest.raises(CheckpointRefused, match="of kind ensemble"):
        inspect_checkpoint(folder)
