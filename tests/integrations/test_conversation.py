"""What other systems hand over, as items: unit tests."""

from __future__ import annotations

from typing import Any

import pytest

from guerdon.client import (
    Conversation,
    FormattedText,
    InvalidArgument,
    Item,
    Score,
    ScoreResult,
    ScoringInfo,
)
from guerdon.client.types import ItemScores, Timing
from guerdon.integrations.conversation import exchange, grouped, ungrouped

USER = {"role": "user", "content": "What is rain?"}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def answer(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("q", "a", ("q", "a")),
        (FormattedText("q"), "a", (FormattedText("q"), "a")),
        ([USER], "a", ([USER], "a")),
        ([USER], [answer("a")], ([USER], "a")),
        ("q", [answer("a")], ("q", "a")),
        ([USER], [answer(None, tool_calls=None)], ([USER], "")),
        (
            [{"role": "user", "content": [part("What is "), part("rain?")]}],
            [answer([part("a")], tool_calls=[])],
            ([USER], "a"),
        ),
        (
            [USER],
            [answer("a"), {"role": "user", "content": "More."}, answer("b")],
            ([USER, answer("a"), {"role": "user", "content": "More."}], "b"),
        ),
        (
            "q",
            [answer("a"), {"role": "user", "content": "More."}, answer("b")],
            (
                [
                    {"role": "user", "content": "q"},
                    answer("a"),
                    {"role": "user", "content": "More."},
                ],
                "b",
            ),
        ),
    ],
)
def test_every_form_becomes_prompt_and_response(
    prompt: Any, completion: Any, expected: Any
) -> None:
    assert exchange(prompt, completion) == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "field"),
    [
        ([], "a", "prompt"),
        (7, "a", "prompt"),
        (["q"], "a", "prompt[0]"),
        ([{"content": "q"}], "a", "prompt[0].role"),
        ([{"role": "user"}], "a", "prompt[0].content"),
        ([{**USER, "name": 7}], "a", "prompt[0].name"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a", "prompt[0].content[0]"),
        ([USER], [], "completion"),
        ([USER], [USER], "completion"),
        ([USER], None, "completion"),
        (
            [USER],
            [answer(None, tool_calls=[{"id": "1"}])],
            "completion[0].tool_calls[0].function.name",
        ),
        ([USER], [answer("a", audio={"id": "1"})], "completion[0].audio"),
        (FormattedText("q"), [answer("a"), USER, answer("b")], "completion"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(prompt: Any, completion: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        exchange(prompt, completion)
    assert caught.value.field_violations[0].field == field


def test_what_messages_say_beside_their_text_is_kept() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    flat = {"id": "1", "name": "look", "arguments": '{"at": "sky"}'}
    tool = {"role": "tool", "tool_call_id": "1", "name": "look", "content": "It rains."}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    asked = [{**USER, "name": "Ada"}]
    turns = [answer(None, tool_calls=[flat]), tool, answer("Yes.", reasoning_content="So.")]
    prompt, response = exchange(asked, turns, tools=tools)
    assert prompt == Conversation([*asked, answer(None, tool_calls=[call]), tool], tuple(tools))
    assert response == turns[-1]
    other = exchange(asked, turns[:1])
    assert other == (asked, answer(None, tool_calls=[call]))
    items, places = grouped([(prompt, response), other, (prompt, "No.")])
    assert items == [Item(prompt, [response, "No."]), Item(asked, [other[1]])]
    assert places == [(0, 0), (1, 0), (0, 1)]


def test_keys_are_left_out_only_when_that_is_asked_for() -> None:
    turns = [answer("a", reasoning_content="hm")]
    assert exchange("q", turns, ignored_keys=["reasoning_content"]) == ("q", "a")


def test_equal_prompts_become_one_item_and_scores_return_to_their_places() -> None:
    text, chat = USER["content"], [USER]
    exchanges = [(chat, "a"), (text, "b"), (chat, "c"), (FormattedText(text), "d"), (text, "b")]
    items, places = grouped(exchanges)
    assert items == [
        Item(chat, ["a", "c"]),
        Item(text, ["b", "b"]),
        Item(FormattedText(text), ["d"]),
    ]
    scores = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    result = ScoreResult(
        tuple(
            ItemScores("", tuple(Score(score=scores[str(r)]) for r in i.responses)) for i in items
        ),
        ScoringInfo(model="m", revision="r"),
        Timing(),
    )
    assert [s.score for s in ungrouped(result, places)] == [1.0, 2.0, 3.0, 4.0, 2.0]
