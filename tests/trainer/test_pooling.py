"""Training scores a sequence where the server does, at its true last token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.command import read_rows
from tests.support.tiny import tiny_checkpoint
from tests.trainer.toy import run, toy_rows, toy_settings, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guerdon.trainer.common.data.preferences import load_pairs
from guerdon.trainer.common.data.tokens import (
    TokenPair,
    TokenPairs,
    choose_pad_token,
    load_tokenizer,
    tokenize_pairs,
)
from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.reward import shared_prefix as sharing
from guerdon.trainer.reward.model import load_base
from guerdon.trainer.reward.scoring import score_pairs

ENDS_WITH_EOS = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"


def pairs_of(folder: Path, tmp_path: Path) -> tuple[Any, TokenPairs]:
    tokenizer = load_tokenizer(folder)
    path = write_rows(tmp_path / "pairs.jsonl", toy_rows(12, seed=4))
    data = load_pairs(str(path), split="train")
    return tokenizer, tokenize_pairs(tokenizer, data, max_length=200, too_long="error")


def alone(model: Any, sequences: list[list[int]]) -> np.ndarray:
    """Each by itself, at its last token: the rule of the server."""
    found = []
    for ids in sequences:
        with torch.no_grad():
            hidden = sharing.parts(model)[0](input_ids=torch.tensor([ids])).last_hidden_state
            found.append(model.score(hidden[0, -1]).item())
    return np.array(found)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("share", [False, True])
def test_scores_in_training_are_those_of_one_at_a_time(
    architecture: str, share: bool, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture, chat_template=ENDS_WITH_EOS)
    tokenizer, tokens = pairs_of(folder, tmp_path)
    tokenizer.pad_token = tokenizer.eos_token  # the trap: the last token is the pad token
    choose_pad_token(tokenizer, [p.chosen for p in tokens.pairs], len(tokenizer))
    assert tokenizer.pad_token != tokenizer.eos_token
    model = load_base(folder, tokenizer, grow=False).eval()
    if share:
        assert sharing.may_share(model)
        assert sharing.agrees(model, tokens.pairs[:3], tokenizer.pad_token_id)
    found = score_pairs(
        model,
        tokens.pairs,
        pad_id=tokenizer.pad_token_id,
        share=share,
        dtype="float32",
        batch_tokens=300,
    )
    np.testing.assert_allclose(
        found.chosen, alone(model, [p.chosen for p in tokens.pairs]), atol=1e-4
    )
    np.testing.assert_allclose(
        found.rejected, alone(model, [p.rejected for p in tokens.pairs]), atol=1e-4
    )


def test_sharing_is_refused_where_it_would_be_wrong(tmp_path: Path) -> None:
    for architecture in ("mistral", "gemma2", "gemma3_text", "bert"):
        folder = tiny_checkpoint(tmp_path / architecture, architecture, chat_template=ENDS_WITH_EOS)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert not sharing.may_share(load_base(folder, tokenizer, grow=False)), architecture


def test_the_probe_sees_a_model_that_ignores_the_mask(base: Path, tmp_path: Path) -> None:
    tokenizer, tokens = pairs_of(base, tmp_path)
    model = load_base(base, tokenizer, grow=False).eval()
    whole = model.model.forward

    def blind(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return whole(*args, attention_mask=None, **kwargs)

    model.model.forward = blind
    assert not sharing.agrees(model, tokens.pairs[:3], tokenizer.pad_token_id)


def test_answers_that_begin_alike_share_more_than_the_prompt() -> None:
    assert TokenPair([1, 2, 3, 4], [1, 2, 3, 5], 2, 2).shared == 3
    assert TokenPair([1, 2], [1, 2, 3], 1, 2).shared == 1  # short of either's last token
    assert TokenPair([1], [2], 1, 1).shared == 0


def test_a_model_trained_with_pad_equal_to_eos_is_saved_safely(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    base = tiny_checkpoint(tmp_path / "b", "qwen2", causal_lm=True, chat_template=ENDS_WITH_EOS)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["pad_token"] = config["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    output = tmp_path / "run"
    summary, _ = run(toy_settings(base, toy, output))
    assert summary["accuracy"] > 0.9

    tokenizer = AutoTokenizer.from_pretrained(output)
    model = AutoModelForSequenceClassification.from_pretrained(output)
    assert tokenizer.pad_token != tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rows = read_rows(toy[1])
    ids = [
        tokenizer.apply_chat_template(row["prompt"] + row["chosen"], return_dict=True)["input_ids"]
        for row in rows
    ]
    assert all(sequence[-1] == tokenizer.eos_token_id for sequence in ids)
    padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    with torch.no_grad():
        together = model(**padded).logits.flatten().numpy()
    np.testing.assert_allclose(together, alone(model, ids), atol=1e-4)


def test_a_base_that_is_no_reward_model_is_refused(tmp_path: Path, toy: tuple[Path, Path]) -> None:
    two = tiny_checkpoint(tmp_path / "two", "llama", num_labels=2)
    with pytest.raises(TrainingError, match=r"can't load .* as a reward model"):
        run(toy_settings(two, toy, tmp_path / "run"))

    pickled = tiny_checkpoint(tmp_path / "pickled", "llama")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(TrainingError, match=r"can't load .* as a reward model"):
        run(toy_settings(pickled, toy, tmp_path / "other"))


def test_a_trained_head_is_kept(tmp_path: Path, toy: tuple[Path, Path]) -> None:
    base = tiny_checkpoint(tmp_path / "b", "llama")
    before = AutoModelForSequenceClassification.from_pretrained(base).score.weight
    run(toy_settings(base, toy, tmp_path / "run", lr=1e-9, epochs=0.1))
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").score.weight
    assert torch.allclose(before, after, atol=1e-6)
