"""Messages in their normal form, and on their way through the protocol."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import tools as talk

from guerdon.client import Conversation, InvalidArgument, Item, RewardClient
from guerdon.client.testing import FakeRewardServer
from guerdon.data import (
    Message,
    RowError,
    parse_pair,
    parse_questions,
    read_message,
    read_tools,
)
from guerdon.data.conversation_protos import conversation_from_proto, conversation_to_proto
from guerdon.v1 import common_pb2

TEXT = st.text(max_size=8)
NAME = st.text(min_size=1, max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
CALL = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": NAME, "arguments": st.dictionaries(TEXT, JSON, max_size=3)}
        ),
    },
    optional={"id": NAME},
)
SAID = st.fixed_dictionaries(
    {"role": NAME, "content": TEXT},
    optional={"name": NAME, "reasoning_content": NAME, "tool_call_id": NAME},
)
CALLED = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": TEXT | st.none(),
        "tool_calls": st.lists(CALL, min_size=1, max_size=2),
    }
)
TOOL = st.builds(
    lambda name, more: {**more, "name": name}, NAME, st.dictionaries(TEXT, JSON, max_size=2)
)


@given(
    turns=st.lists(SAID | CALLED, min_size=1, max_size=3),
    tools=st.lists(TOOL, max_size=2),
    kwargs=st.dictionaries(st.sampled_from(["enable_thinking", "date"]), JSON),
)
def test_a_conversation_crosses_the_wire_as_it_is(
    turns: list[Message], tools: list[Any], kwargs: dict[str, Any]
) -> None:
    sent = Conversation(tuple(turns), tuple(tools), kwargs)
    data = conversation_to_proto(sent).SerializeToString()
    found = conversation_from_proto(common_pb2.Conversation.FromString(data), "p", RowError)
    assert found == sent
    # The order of keys too: templates print tools and arguments as they stand.
    assert json.dumps([found.tools, arguments(found.messages)]) == json.dumps(
        [tools, arguments(turns)]
    )


def arguments(turns: Sequence[Message]) -> list[Any]:
    return [call["function"]["arguments"] for turn in turns for call in turn.get("tool_calls", ())]


def test_a_server_gets_what_was_asked() -> None:
    """By the fake, whose function sees prompts and responses."""
    seen: list[Any] = []

    def score(prompt: Any, response: Any) -> float:
        seen.append((prompt, response))
        return 1.0

    wanted = Conversation(tuple(talk.TALK), (talk.WEATHER,), {"enable_thinking": False})
    with FakeRewardServer(score) as fake, RewardClient(fake.target) as rewards:
        item = Item(
            Conversation([*map(talk.as_sent, talk.TALK[:3])], [talk.WEATHER]), [talk.CALL, "text"]
        )
        assert item.responses == (talk.CALL, "text")
        asked = Conversation(talk.TALK, [json.dumps(talk.WEATHER)], {"enable_thinking": False})
        rewards.score_one("fake", asked, [talk.CALL, "It will rain."])
    assert seen == [(wanted, talk.CALL), (wanted, "It will rain.")]


CALLED_AT = "m.tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "a"}, "m.role"),
        ({"role": "", "content": "a"}, "m.role"),
        ({"role": "user"}, "m.content"),
        ({"role": "assistant", "content": None}, "m.content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "m.content[0]"),
        ({"role": "user", "content": ["a"]}, "m.content[0]"),
        ({"role": "user", "content": {"text": "a"}}, "m.content"),
        ({"role": "user", "content": "a", "name": 1}, "m.name"),
        ({"role": "user", "content": "a", "name": "\ud800"}, "m.name"),
        ({"role": "user", "content": "\ud800"}, "m.content"),
        ({"role": "assistant", "tool_calls": [talk.call({"a": 10**5000})]}, CALLED_AT + ".a"),
        ({"role": "user", "content": "a", "function_call": {"name": "f"}}, "m.function_call"),
        ({"role": "tool", "content": "a", "tool_calls": [talk.call()]}, "m.tool_calls"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "m.tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "m.tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "m.tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "m.tool_calls[0].function.name"),
        *(
            (
                {"role": "assistant", "tool_calls": [talk.call(arguments)]},
                "m.tool_calls[0].function.arguments",
            )
            for arguments in ("{", "[]", 7, '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": ' * 2000)
        ),
        (
            {"role": "assistant", "tool_calls": [talk.call({"a": float("inf")})]},
            "m.tool_calls[0].function.arguments.a",
        ),
        (
            {"role": "assistant", "tool_calls": [talk.call('{"a": "\\ud800"}')]},
            "m.tool_calls[0].function.arguments.a",
        ),
    ],
)
def test_a_wrong_part_of_a_message_is_named(message: Any, field: str) -> None:
    with pytest.raises(RowError) as caught:
        read_message(message, "m", RowError)
    assert caught.value.field == field


def test_reasoning_has_one_of_two_names() -> None:
    said = {"role": "assistant", "content": "a"}
    for more in (
        {"reasoning": "b"},
        {"reasoning_content": "b", "reasoning": None},
        {"reasoning_content": "", "reasoning": "b"},
        {"reasoning_content": "b", "reasoning": "b"},
    ):
        found = read_message(said | more, "m", RowError, strict=True)
        assert found == said | {"reasoning_content": "b"}
    with pytest.raises(RowError, match=r"m\.reasoning: differs"):
        read_message(said | {"reasoning_content": "b", "reasoning": "c"}, "m", RowError)


def test_what_python_takes_for_equal_is_told_apart() -> None:
    """Templates print 1, 1.0 and true, and the order of keys."""

    def row(*arguments: Any) -> dict[str, Any]:
        chosen, rejected = (
            [*talk.ASKED, {**talk.CALL, "tool_calls": [talk.call(each)]}, talk.RESULT]
            for each in arguments
        )
        answer = {"role": "assistant", "content": "So."}
        return {"chosen": [*chosen, answer], "rejected": [*rejected, {**answer, "content": "No."}]}

    for arguments in (({"n": 1}, {"n": True}), ({"a": 1, "b": 2}, {"b": 2, "a": 1})):
        pair = parse_pair(row(*arguments))
        assert len(pair.prompt) == len(talk.ASKED)
        assert len(parse_questions(row(*arguments))) == 2
    assert len(parse_questions(row({"n": 1}, {"n": 1}))) == 1


def test_an_item_is_not_changed_from_outside() -> None:
    tool, turn = copy.deepcopy((talk.WEATHER, talk.CALL))
    item = Item(Conversation([*talk.ASKED, turn], [tool]), ["a", turn])
    before = copy.deepcopy(item)
    tool["function"]["name"] = "other"
    turn["tool_calls"][0]["function"]["arguments"]["city"] = float("nan")
    assert item == before


def test_what_has_no_value_is_left_out() -> None:
    """Arrow fills the keys of all rows' messages with null."""
    nothing = {"name": None, "tool_calls": None, "tool_call_id": "", "reasoning_content": None}
    plain = {"role": "user", "content": "a"}
    assert read_message({**plain, **nothing, "weight": 0.5}, "m", RowError) == plain
    with pytest.raises(RowError, match=r"m\.weight"):
        read_message({**plain, "weight": 0.5}, "m", RowError, strict=True)
    assert read_tools(None, "tools", RowError) == read_tools("[]", "tools", RowError) == ()


def test_a_deep_tool_is_refused() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(InvalidArgument, match="within each other"):
        Item(Conversation(talk.ASKED, [{"name": "f", "parameters": deep}]), ["a"])
