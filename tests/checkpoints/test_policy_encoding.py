"""Tokens of an implicit reward are those that `guerdon train dpo` trains on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints.test_implicit import implicit
from tests.support.conversations import conversation, turn
from tests.support.tiny import BOS, CHATML, EOS, TURN_END, tiny_checkpoint

from guerdon.data import Conversation
from guerdon.models import Manifest, resolve_model
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.policy_encoder import PolicyEncoder
from guerdon.reward.types import EncodedItem, FormattedText, ScoreItem, Truncation
from guerdon.serving.errors import CheckpointRefused, InvalidRequest
from guerdon.trainer.fine_tune.tokens import encode as train_encode

QUESTION = conversation(("system", "Be brief."), ("user", "What is the capital of France?"))
ANSWERS = ("Paris.", "It is Paris, I think.\n", " leading", "It is <|im_end|> Paris 🙂", "Paris")
TEMPLATES = {
    "chatml": CHATML,  # writes a new line after the turn's end, which is not the policy's end token
    "ends with eos": (
        BOS + "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}"
        "{% if m['role'] == 'assistant' %}" + EOS + "{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
    "thinks": CHATML.replace(
        "message['content']",
        "('<think></think>' if message['role'] == 'assistant' else '') + message['content']",
    ),
}


def encoder(folder: Path, template: str | None = CHATML, **manifest: Any) -> PolicyEncoder:
    made = implicit(folder, {"chat_template": template}, template, **manifest)
    return PolicyEncoder(inspect_checkpoint(made))


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> PolicyEncoder:
    """SmolLM2's real tokenizer, whose end token ends its turns, and template."""
    folder = tmp_path_factory.mktemp("smollm")
    for seed, name in enumerate("pr"):
        tiny_checkpoint(
            folder / name,
            "llama",
            seed=seed,
            causal_lm=True,
            vocab_size=49152,
            tokenizer=False,
            max_positions=8192,
        )
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(resolve_model("smollm2-135m-instruct") / file, folder / name / file)
    Manifest(kind="implicit", policy="p", reference="r", beta=0.1).write(folder)
    return PolicyEncoder(inspect_checkpoint(folder))


def encode(encoder: PolicyEncoder, prompt: Any, *responses: Any, cut: bool = False) -> EncodedItem:
    how = Truncation.PROMPT_LEFT if cut else Truncation.REJECT
    return encoder.encode(ScoreItem(prompt, responses), how)


def parts(item: EncodedItem) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each sequence; the readout says where they part."""
    found = []
    for suffix, places in zip(item.suffixes, item.readout, strict=True):
        ids = np.concatenate([item.prefix, suffix]).tolist()
        assert places.tolist() == list(range(places[0], len(ids)))
        found.append((ids[: places[0]], ids[places[0] :]))
    return found


def trained(encoder: PolicyEncoder, asked: Conversation, answers: Any) -> Any:
    """What the trainer makes of the same."""
    prompt: Any = list(asked.messages)
    count = len(answers)
    rows, _ = train_encode(
        encoder._tokenizer,
        [prompt] * count,
        list(answers),
        list(range(count)),
        "test",
        vocab_size=len(encoder._tokenizer),
    )
    return rows


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_is_what_dpo_trains_on(template: str, tmp_path: Path) -> None:
    made = encoder(tmp_path, TEMPLATES[template])
    _, question = QUESTION.messages
    more = (*QUESTION.messages, turn("assistant", "Rome"), question)
    for turns in (QUESTION, Conversation((question,)), Conversation(more)):
        found = parts(encode(made, turns, *ANSWERS))
        assert found == trained(made, turns, ANSWERS)
        for answer in ANSWERS:  # alone, nothing is shared
            assert parts(encode(made, turns, answer)) == trained(made, turns, [answer])


def test_a_conversation_with_a_real_tokenizer(smollm: PolicyEncoder) -> None:
    found = parts(encode(smollm, QUESTION, *ANSWERS, ""))
    assert found == trained(smollm, QUESTION, [*ANSWERS, ""])
    end = smollm._tokenizer.convert_tokens_to_ids(TURN_END)
    assert all(response[-1] == end for _, response in found), "no new line after the end"
    assert found[-1][1] == [end]
    as_text = encode(smollm, "What?", "A")
    assert parts(as_text) == parts(encode(smollm, conversation(("user", "What?")), "A"))


def test_rendered_text_and_ids_are_taken_as_they_stand(smollm: PolicyEncoder) -> None:
    (prompt, response), *_ = parts(encode(smollm, QUESTION, "Paris."))
    decode = smollm._tokenizer.decode
    assert parts(encode(smollm, FormattedText(decode(prompt)), decode(response))) == [
        (prompt, response)
    ]
    without_end = parts(encode(smollm, FormattedText(decode(prompt)), decode(response[:-1])))
    assert without_end == [(prompt, response[:-1])], "no end token is added"
    ids = [np.array(ids, dtype=np.int32) for ids in (prompt, response, response[:1])]
    found = encode(smollm, ids[0], *ids[1:])
    assert parts(found) == [(prompt, response), (prompt, response[:1])]
    assert len(found.prefix) == len(prompt), "the last token of the shortest is not shared"


def test_tokens_are_cut_from_the_prompt_only(tmp_path: Path) -> None:
    made = encoder(tmp_path, max_tokens=30)
    (prompt, response), *_ = parts(encode(encoder(tmp_path / "whole"), QUESTION, "Paris."))
    assert len(prompt) + len(response) > 30
    item = encode(made, QUESTION, "Paris.", cut=True)
    assert parts(item) == [(prompt[-(30 - len(response)) :], response)]
    assert item.truncated == (len(prompt) + len(response) - 30,)
    with pytest.raises(InvalidRequest, match="is too long: with its prompt"):
        encode(made, QUESTION, "Paris.")
    ids = np.arange(7, 37, dtype=np.int32)
    with pytest.raises(InvalidRequest, match="no room for a token of its prompt"):
        encode(made, ids[:5], ids, cut=True)


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        (FormattedText(""), "a", "makes no token at all"),
        (FormattedText("a"), "", "makes no token at all"),
        (conversation(), "a", "at least one message"),
    ],
)
def test_what_has_no_likelihood(prompt: Any, response: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        encode(encoder(tmp_path), prompt, response)


def test_without_a_template_only_rendered_prompts_are_taken(tmp_path: Path) -> None:
    made = encoder(tmp_path, None)
    for prompt in ("What?", QUESTION):
        with pytest.raises(InvalidRequest, match="the policy has no chat template"):
            encode(made, prompt, "a")
    assert parts(encode(made, FormattedText("Q: a\nA:"), " b"))


def test_a_template_that_renders_the_prompt_in_another_way(tmp_path: Path) -> None:
    """As those do that open a thought in the generation prompt and leave it out of answers."""
    template = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>' }}{% endif")
    with pytest.raises(CheckpointRefused, match="in another way once there is an answer"):
        encoder(tmp_path, template)
    late = CHATML.replace(
        "{% if add",
        "{% if messages[0]['role'] == 'system' and add_generation_prompt %}!{% endif %}{% if add",
    )
    made = encoder(tmp_path / "late", late)
    assert parts(encode(made, Conversation(QUESTION.messages[1:]), "a"))
    with pytest.raises(InvalidRequest, match="in another way"):
        encode(made, QUESTION, "a")


def test_no_end_token(tmp_path: Path) -> None:
    folder = implicit(tmp_path)
    checkpoint = inspect_checkpoint(folder)
    checkpoint.tokenizer.eos_token = None
    with pytest.raises(CheckpointRefused, match="no end token"):
        PolicyEncoder(checkpoint)
