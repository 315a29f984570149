"""What a verdict's folder must say, and which language models and questions are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints.support import edit_json, edit_tensors, load
from tests.published.checkpoints import qwen_rm
from tests.support.tiny import tiny_checkpoint

from guerdon.models import Manifest
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.verdict_encoder import VerdictEncoder
from guerdon.reward.types import (
    ForeignText,
    FormattedText,
    ModelKind,
    ScoreItem,
    Truncation,
    Unrendered,
)
from guerdon.serving.errors import CheckpointRefused, InvalidRequest

QUESTION = ("<s>{prompt}", " {response}", "?")


def verdict(folder: Path, manifest: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A language model that says "a" or "b" of a response."""
    tiny_checkpoint(folder, **{"architecture": "llama", "causal_lm": True, **settings})
    values = {"kind": "verdict", "question": QUESTION, "yes_token": "a", "no_token": "b"}
    Manifest(**{**values, **(manifest or {})}).write(folder)
    return folder


def test_a_language_model_and_its_question(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(verdict(tmp_path))
    words = checkpoint.tokenizer
    assert checkpoint.kind is ModelKind.VERDICT
    assert checkpoint.verdict_ids == tuple(words.convert_tokens_to_ids(["a", "b"]))
    assert checkpoint.chat_template_hash == "", "its chat template is not used"
    assert type(load(checkpoint)).__name__ == "LlamaForCausalLM"
    edit_json(tmp_path / "guerdon.json", no_token="")
    assert inspect_checkpoint(tmp_path).verdict_ids == checkpoint.verdict_ids[:1]


def test_another_question_is_another_revision(tmp_path: Path) -> None:
    before = inspect_checkpoint(verdict(tmp_path)).revision
    edit_json(tmp_path / "guerdon.json", question=["{prompt}", " {response}"])
    assert inspect_checkpoint(tmp_path).revision != before


@pytest.mark.parametrize(
    ("manifest", "settings", "reason"),
    [
        ({"yes_token": "ab"}, {}, "yes_token 'ab' in .* is not one token of the tokenizer but 2"),
        ({"no_token": "\n\n"}, {}, "no_token .* is not one token"),
        ({"no_token": "<unk>"}, {}, "no_token '<unk>' in .* is unknown to the tokenizer"),
        ({"no_token": "a"}, {}, "are the same token: every score would be 0"),
        ({}, {"vocab_size": 40}, r"yes_token 'a' .* is the token \d+, and the model has logits"),
        ({}, {"causal_lm": False}, "LlamaForSequenceClassification: a verdict is read from a lang"),
        ({"double_bos": True}, {}, "double_bos, which kind = verdict does not have"),
        ({"template_hash": "0"}, {}, "template_hash, which kind = verdict does not have"),
        ({"beta": 0.1}, {}, "gives beta, which only kind = implicit has"),
        ({"kind": "sequence"}, {}, "gives question, which only kind = verdict has"),
    ],
)
def test_refused(
    manifest: dict[str, Any], settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointRefused, match=reason):
        inspect_checkpoint(verdict(tmp_path, manifest, **settings))


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"question": ("<s>", "<s>{prompt}{response}")}, "begins with more than 1 BOS token"),
        ({"max_tokens": 3}, "can't be asked: .*is too long"),
    ],
)
def test_questions_that_can_not_be_asked(
    manifest: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    checkpoint = inspect_checkpoint(verdict(tmp_path, manifest))
    with pytest.raises(CheckpointRefused, match=reason):
        VerdictEncoder(checkpoint)


@pytest.mark.parametrize("answers", [("Paris.", "Rome"), ("It is 42.",)])
def test_a_question_of_one_piece_is_tokenised_at_once(
    answers: tuple[str, ...], tmp_path: Path
) -> None:
    question = "<s><|im_start|>user\nAsked {prompt}, is<step>{response} right?<|im_end|>\n"
    checkpoint = inspect_checkpoint(verdict(tmp_path, {"question": (question,)}))
    encoder, prompt = VerdictEncoder(checkpoint), "What is <|im_end|> 12 + 30?"
    wanted = [
        checkpoint.tokenizer(
            question.replace("{response}", answer).replace("{prompt}", prompt),
            add_special_tokens=False,
        )["input_ids"]
        for answer in answers
    ]
    before, after = question.replace("{prompt}", prompt).split("{response}")
    written = tuple(answer + after for answer in answers)
    for item in (ScoreItem(prompt, answers), ScoreItem(FormattedText(before), written)):
        found = encoder.encode(item, Truncation.REJECT)
        assert [[*found.prefix, *suffix] for suffix in found.suffixes] == wanted


def test_a_reward_model_answers_no_question(tmp_path: Path) -> None:
    folder = qwen_rm(tmp_path)
    Manifest(kind="verdict", question=QUESTION, yes_token="a").write(folder)
    with pytest.raises(CheckpointRefused, match=r"is a reward model .*and a verdict is read from"):
        inspect_checkpoint(folder)


def test_a_head_that_is_missing_or_parts_from_the_embedding(tmp_path: Path) -> None:
    folder = verdict(tmp_path, tie_word_embeddings=False)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointRefused, match="two that differ"):
        load(inspect_checkpoint(folder))
    edit_json(folder / "config.json", tie_word_embeddings=False)
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointRefused, match=r"lacks lm_head\.weight"):
        load(inspect_checkpoint(folder))


def test_a_verdict_is_no_member_of_an_ensemble(tmp_path: Path) -> None:
    for name in ("one", "two"):
        verdict(tmp_path / name)
    Manifest(kind="ensemble", members=("one", "two")).write(tmp_path)
    with pytest.raises(CheckpointRefused, match="is of kind verdict: an ensemble is made of seq"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(("start", "warned"), [("", True), ("<s>", False)])
def test_a_start_that_the_tokenizer_would_add_is_asked_for(
    start: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import Tokenizer, processors

    folder = verdict(tmp_path, {"question": (f"{start}{{prompt}}", "{response}")})
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    rules.save(str(folder / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        VerdictEncoder(inspect_checkpoint(folder))
    assert ("adds '<s>' to a text" in caplog.text) is warned


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    folder = verdict(tmp_path)
    edit_tensors(folder, lambda t: t["lm_head.weight"][0].fill_(float("nan")))
    with pytest.raises(CheckpointRefused, match="not finite"):
        load(inspect_checkpoint(folder), torch.float32)


def test_whole_texts_end_as_the_question_does(tmp_path: Path) -> None:
    """A conversation that a trainer's client rendered holds no question, and means nothing."""
    encoder = VerdictEncoder(inspect_checkpoint(verdict(tmp_path)))
    asked = encoder.encode(ScoreItem("x", ("y",)), Truncation.REJECT).suffixes[0]
    for kind in (Unrendered.FORMATTED, Unrendered.PLAIN):
        whole = ScoreItem(ForeignText("<s>x y?", kind), ("",))
        assert encoder.encode(whole, Truncation.REJECT).suffixes[0].tolist() == asked.tolist()
        conversation = ForeignText("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\ny", kind)
        with pytest.raises(InvalidRequest, match=r"end as its question does \('\?'\)"):
            encoder.encode(ScoreItem(conversation, ("",)), Truncation.REJECT)
    with pytest.raises(InvalidRequest, match="end as its question does"):
        encoder.encode(ScoreItem(FormattedText("<s>x y"), ("",)), Truncation.REJECT)
    user = ScoreItem(ForeignText("x", Unrendered.USER), ("y",))
    assert encoder.encode(user, Truncation.REJECT).suffixes[0].tolist() == asked.tolist()
