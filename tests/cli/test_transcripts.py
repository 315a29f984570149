"""Transcripts, pairs and questions: what a row means."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.data import (
    Demonstration,
    Message,
    Question,
    RowError,
    parse_demonstration,
    parse_pair,
    parse_questions,
    parse_transcript,
)

# What a turn can say so that the transcript has one reading: no turn marks of its own, and
# no spaces around it, which the format doesn't keep.
says = (
    st.text(st.characters(exclude_categories=["Cs"]))
    .map(str.strip)
    .filter(lambda text: "Human:" not in text and "Assistant:" not in text)
)
turns = st.lists(says, min_size=2, max_size=8)


def conversation(texts: list[str]) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[i % 2], content=text) for i, text in enumerate(texts)]


def transcript(messages: list[Message]) -> str:
    name = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{name[m['role']]}: {m['content']}" for m in messages)


@given(turns)
def test_a_transcript_reads_back_as_the_turns_it_was_made_of(texts: list[str]) -> None:
    messages = conversation(texts)
    assert parse_transcript(transcript(messages)) == messages


@given(st.text())
def test_any_text_is_a_transcript_or_a_row_error(text: str) -> None:
    try:
        messages = parse_transcript(text)
    except RowError:
        return
    assert messages
    assert {m["role"] for m in messages} <= {"user", "assistant"}


@given(turns.filter(lambda t: len(t) % 2 == 0), says, says, st.booleans())
def test_a_pair_puts_together_what_it_was_split_from(
    texts: list[str], good: str, bad: str, as_text: bool
) -> None:
    prompt = conversation(texts[:-1])
    chosen = [*prompt, Message(role="assistant", content=good)]
    rejected = [*prompt, Message(role="assistant", content=bad)]
    form = transcript if as_text else list[Message]
    row = {"chosen": form(chosen), "rejected": form(rejected)}
    if good == bad:
        with pytest.raises(RowError, match="the same as chosen"):
            parse_pair(row)
    else:
        pair = parse_pair(row)
        assert pair.prompt == prompt
        assert (pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (chosen, rejected)
    assert parse_questions(row) == [Question(prompt, [good, bad])]


_KEYS = st.sampled_from(["role", "content", "prompt", "x"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_ROW_KEYS = st.sampled_from(["prompt", "responses", "chosen", "rejected", "messages", "id"])


@given(st.dictionaries(_ROW_KEYS, json_values))
def test_any_row_has_questions_or_is_refused(row: dict[str, Any]) -> None:
    try:
        questions = parse_questions(row)
    except RowError:
        return
    assert 1 <= len(questions) <= 2
    for question in questions:
        assert question.prompt
        assert question.responses
        assert all(isinstance(text, str) for text in question.responses)


def test_a_prompt_with_responses_is_one_question() -> None:
    turns_before = [Message(role="system", content="Be kind."), Message(role="user", content="Hi")]
    row = {"prompt": turns_before, "responses": ["Hello", ""], "chosen": 0}
    assert parse_questions(row) == [Question(turns_before, ["Hello", ""])]
    assert parse_questions({"prompt": "Human: hi", "responses": ["x"]}) == [
        Question("Human: hi", ["x"])  # text is text, also when it looks like a transcript
    ]


def test_the_last_turn_of_messages_is_the_response() -> None:
    messages = conversation(["one", "two", "three", "four"])
    assert parse_questions({"messages": messages}) == [Question(messages[:-1], ["four"])]


def test_conversations_that_part_early_are_two_questions() -> None:
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z",
    }
    assert parse_questions(row) == [
        Question(conversation(["a", "b", "c"]), ["d"]),
        Question(conversation(["a", "x", "y"]), ["z"]),
    ]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "good", "bad"),
        ("Hi", conversation(["Hi", "good"]), conversation(["Hi", "bad"])),
        ("\n\nHuman: Hi\n\nAssistant:", "good", "bad"),
        ([{"role": "user", "content": "Hi"}], conversation(["-", "good"])[1:], "bad"),
        (None, "\n\nHuman: Hi\n\nAssistant: good", "\n\nHuman: Hi\n\nAssistant: bad"),
    ],
)
def test_every_form_of_a_pair_asks_the_same(prompt: Any, chosen: Any, rejected: Any) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    expected = [Question([Message(role="user", content="Hi")], ["good", "bad"])]
    assert parse_questions(row) == expected


RULE = Message(role="system", content="Be brief.")


@pytest.mark.parametrize(
    ("prompt", "begins", "expected"),
    [
        ("Why? ", conversation(["Why?"]), conversation(["Why? "])),
        ("Why?", [RULE, *conversation(["Why?\n"])], [RULE, *conversation(["Why?"])]),
        ([RULE, *conversation(["Why?"])], conversation(["Why?"]), [RULE, *conversation(["Why?"])]),
        ([RULE], conversation(["Why?"]), [RULE, *conversation(["Why?"])]),
        ("Why?", conversation(["Why?", "So.", "And?"]), conversation(["Why?", "So.", "And?"])),
    ],
)
def test_a_prompt_beside_whole_conversations_is_said_once(
    prompt: Any, begins: list[Message], expected: list[Message]
) -> None:
    good, bad = (Message(role="assistant", content=text) for text in ("good", "bad"))
    row = {"prompt": prompt, "chosen": [*begins, good], "rejected": [*begins, bad]}
    pair = parse_pair(row)
    assert pair.prompt + pair.chosen == [*expected, good]
    assert pair.prompt + pair.rejected == [*expected, bad]
    assert parse_questions(row) == [Question(expected, ["good", "bad"])]
    assert parse_pair({**row, "rejected": "bad"}).prompt == pair.prompt
    whole = {"prompt": prompt, "messages": [*begins, good]}
    assert parse_demonstration(whole) == Demonstration(expected, "good")
    assert parse_questions(whole) == [Question(expected, ["good"])]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "message"),
    [
        ("Why?", ["How?", "good"], "bad", "chosen: is a conversation that does not begin with"),
        ("Why?", "good", ["How?", "bad"], "rejected: is a conversation that does not begin with"),
        (conversation(["a", "b", "c"]), ["c", "good"], "bad", "user: 'c' in place of user: 'a'"),
        (conversation(["a ", "b"]), ["a", "B", "c", "good"], "bad", "does not begin with the row"),
        (
            [{**RULE, "content": "Be long."}, *conversation(["Why?"])],
            ["system", "Why?", "good"],
            "bad",
            "chosen: begins with another system turn than the row's prompt",
        ),
        (
            "Why?",
            ["system", "Why?", "good"],
            ["Why?", "bad"],
            "rejected: begins with another system turn than chosen",
        ),
    ],
)
def test_conversations_that_do_not_begin_with_the_prompt_are_refused(
    prompt: Any, chosen: Any, rejected: Any, message: str
) -> None:
    def turns_of(texts: Any) -> Any:
        if isinstance(texts, str):
            return texts
        rules = [RULE] if texts[0] == "system" else []
        return rules + conversation(texts[len(rules) :])

    row = {"prompt": prompt, "chosen": turns_of(chosen), "rejected": turns_of(rejected)}
    for parse in (parse_pair, parse_questions):
        with pytest.raises(RowError) as caught:
            parse(row)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, 'has no "responses", no "chosen" and "rejected", and no "messages"'),
        ({"prompt": "a"}, 'has no "responses"'),
        ({"responses": ["a"]}, "prompt: is missing"),
        ({"prompt": "", "responses": ["a"]}, "prompt: is empty"),
        ({"prompt": 3, "responses": ["a"]}, "prompt: must be a non-empty list of messages"),
        ({"prompt": "a", "responses": []}, "responses: must be a non-empty list of texts"),
        ({"prompt": "a", "responses": "b"}, "responses: must be a non-empty list of texts"),
        ({"prompt": "a", "responses": ["b", 3]}, "responses[1]: must be text"),
        ({"prompt": "a", "responses": ["\ud800"]}, "unpaired surrogate"),
        ({"prompt": [{"role": "user"}], "responses": ["a"]}, "prompt[0].content: must be text"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "rejected: is missing"),
        ({"chosen": "no turns", "rejected": "none"}, "chosen: is not a transcript"),
        (
            {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a"},
            "rejected: does not end with the assistant's turn",
        ),
        ({"messages": []}, "messages: must be a non-empty list"),
        ({"messages": conversation(["a"])}, "messages: does not end with the assistant's turn"),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            "messages: has no turn before the assistant's",
        ),
    ],
)
def test_a_row_that_asks_nothing_is_refused_with_its_field(
    row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError) as caught:
        parse_questions(row)
    assert message in str(caught.value)
