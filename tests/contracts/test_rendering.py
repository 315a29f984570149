"""What is found missing of conversations, with chat templates as published models have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.support import tools as talk
from tests.support.tiny import CHATML, tiny_tokenizer

from guerdon.data import (
    ControlTokens,
    Dropped,
    Message,
    Missing,
    TemplateInputs,
    dropped_by,
    missing_beside,
    missing_text,
    read_message,
    roles_named_in,
    unknown_role,
)
from guerdon.models.chat_template import render_chat

TRIMS = CHATML.replace("message['content']", "message['content'] | trim")
PARTS = CHATML.replace(
    "message['content']", "(message['content'] | selectattr('text') | map(attribute='text') | join)"
)
KNOWN_ONLY = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
SYSTEM_IN_LAST_USER = (  # Mistral 7B Instruct v0.3
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.last or loop.index0 == (messages | length) - 3 %}{{ system }}\n\n{% endif %}"
    "{{ m['content'] }}[/INST]{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}"
)
STRIPS_ALL = (  # DeepSeek-R1's distilled models
    "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
STRIPS_EARLIER = (  # Qwen3
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}{% set thought = m['content'].split('</think>')[0].split('<think>')[-1] %}"
    "<think>\n{{ thought.strip('\n') }}\n</think>\n\n{{ answer }}{% else %}{{ answer }}{% endif %}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
)
DEFAULT_SYSTEM = "<|im_start|>system\nYou are Qwen, who is asked: Why?<|im_end|>\n" + CHATML
REFUSES_SYSTEM = (  # Gemma 2
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TRIMS
)
JSON_TOOLS = CHATML.replace(
    "message['content']",
    "(message['content'] | tojson if message['role'] == 'tool' else message['content'])",
)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


SYSTEM: Message = {"role": "system", "content": "Answer in French."}
THOUGHT = "<think>It falls.</think>\nWater."
TALK = [SYSTEM, user(" Why? \n"), assistant("So.\n"), user("So."), assistant("  Yes.")]


def rendering(template: str) -> Callable[[list[Message]], str]:
    tokenizer = tiny_tokenizer(chat_template=template)
    return lambda turns: str(tokenizer.apply_chat_template(turns, tokenize=False))


@pytest.mark.parametrize("template", [CHATML, TRIMS, SYSTEM_IN_LAST_USER, DEFAULT_SYSTEM])
def test_templates_that_show_everything_are_not_blamed(template: str) -> None:
    assert missing_text(rendering(template)(TALK), TALK) == []


def test_a_text_escaped_as_json_is_there() -> None:
    turns = [user("Look"), {"role": "tool", "content": 'a "b"\nc'}, assistant("d")]
    assert missing_text(rendering(JSON_TOOLS)(turns), turns) == []


@pytest.mark.parametrize(
    ("template", "turns", "missing"),
    [
        (PARTS, TALK[1:], [0, 1, 2, 3]),
        (KNOWN_ONLY, TALK, [0]),
        (KNOWN_ONLY, [{"role": "tool", "content": "Ja"}, user("q"), assistant("Yes")], [0]),
        # Each text is somewhere, but not that of the second turn after the first one's.
        (KNOWN_ONLY, [user("Yes"), {"role": "human", "content": "Yes"}, assistant("No")], [1]),
        (STRIPS_ALL, [user("q"), assistant("<think>It falls.</think>")], [1]),
    ],
)
def test_a_text_that_is_left_out_is_found(
    template: str, turns: list[Message], missing: list[int]
) -> None:
    found = missing_text(rendering(template)(turns), turns)
    assert [entry.place for entry in found] == missing
    system = [turns[place]["role"] == "system" for place in missing]
    assert [entry.part is Dropped.SYSTEM_TURN for entry in found] == system
    assert all(
        turns[place]["content"].strip() in entry.reason
        for place, entry in zip(missing, found, strict=True)
    )


@pytest.mark.parametrize(
    ("template", "last", "expected"),
    [
        (STRIPS_ALL, THOUGHT, [Dropped.EARLIER_REASONING, Dropped.ANSWER_REASONING]),
        (STRIPS_EARLIER, THOUGHT, [Dropped.EARLIER_REASONING]),
        (STRIPS_EARLIER, "It falls.</think>Water.", [Dropped.EARLIER_REASONING]),
        (STRIPS_EARLIER, "<think>\n\n</think>\n\nWater.", [Dropped.EARLIER_REASONING]),
        (CHATML, THOUGHT, []),
    ],
)
def test_reasoning_that_is_left_out_is_told_from_answers(
    template: str, last: str, expected: list[Dropped]
) -> None:
    turns = [user("q"), assistant("<think>It rains.</think>Rain."), user("r"), assistant(last)]
    found = missing_text(rendering(template)(turns), turns)
    assert [entry.part for entry in found] == expected
    assert [entry.text for entry in found] == ["It rains.", "It falls."][: len(expected)]


def test_reasoning_that_occurs_in_answers_is_no_reason_to_refuse_them() -> None:
    turns = [user("q"), assistant("<think>x</think>Yes"), user("ok"), assistant("x Yes")]
    found = missing_text(rendering(STRIPS_ALL)(turns), turns)
    assert all(entry.part is Dropped.EARLIER_REASONING for entry in found)
    turns = [user("q"), assistant("<think>0</think>0 drops")]
    found = missing_text(rendering(STRIPS_ALL)(turns), turns)
    assert [entry.part for entry in found] == [Dropped.ANSWER_REASONING]


THINKS: Message = {**assistant("It will rain."), "reasoning_content": "Clouds."}
BOTH: Message = {**talk.CALL, "content": "Let me see.", "reasoning_content": "I ask."}  # type: ignore[typeddict-item]
PUBLISHED = {
    # What templates of published models leave out of a call with its answer, of a turn that thinks,
    # speaks and calls, and whether they leave the tools out.
    "qwen3": (["name"], [], False),
    "qwen3_6": (["name"], [], False),
    "glm4moe": (["name"], [], False),
    "nemotron_3_nano": (["name"], [], False),
    "qwen2_5": (["name"], ["reasoning_content"], False),
    "gptoss": (["name"], ["reasoning_content"], False),
    "llama3_1": (["name"], ["content", "reasoning_content"], False),
    "deepseekv3": (["name"], ["reasoning_content"], True),
    "lfm2": (["tool_calls[0]", "name"], ["reasoning_content", "tool_calls[0]"], False),
    "llama3": (["tool_calls[0]", "name"], ["reasoning_content", "tool_calls[0]"], True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_templates_leave_out_of_calls_is_found(name: str) -> None:
    answered, spoken, no_tools = PUBLISHED[name]
    tokenizer = tiny_tokenizer(chat_template=talk.published(name))
    turns = [read_message(turn, "", ValueError) for turn in [*map(talk.as_sent, talk.TALK)]]
    inputs = TemplateInputs((talk.WEATHER,))

    def render(said: Any, given: TemplateInputs) -> str:
        return render_chat(tokenizer, said, given)

    for said, missing in (
        ([*turns, assistant(talk.ANSWER)], answered),
        ([*turns[:2], BOTH], spoken),
    ):
        rendered = render_chat(tokenizer, said, inputs)
        found = [*missing_text(rendered, said), *missing_beside(render, said, inputs)]
        assert [entry.field for entry in found] == (["tools[0]"] if no_tools else []) + missing


def beside(template: str, turns: list[Message], *tools: Any) -> list[Missing]:
    """What a template leaves out beside the texts."""
    tokenizer = tiny_tokenizer(chat_template=template)

    def render(marked: Any, inputs: TemplateInputs) -> str:
        return render_chat(tokenizer, marked, inputs)

    return missing_beside(render, turns, TemplateInputs(tools))


def test_reasoning_beside_an_answer_is_found_like_reasoning_in_it() -> None:
    for earlier in (True, False):
        turns = [user("q"), THINKS, *([user("r"), assistant("s")] if earlier else [])]
        (found,) = beside(CHATML, turns)
        part = Dropped.EARLIER_REASONING if earlier else Dropped.ANSWER_REASONING
        assert (found.part, found.text) == (part, "Clouds.")


def called(name: str, arguments: dict[str, Any]) -> Message:
    call: Any = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


SHOWS_FIRST_CALL = (
    "{% for m in messages %}{{ m.name }} {{ m.content }}"
    "{{ m.tool_calls[0].function | tojson if m.tool_calls }}\n{% endfor %}"
)
SHOWS_TRUE = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{% for key, value in c.function.arguments | items if value is string and 'x' in value %}"
    "{{ key }}{{ value | string }}{% endfor %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "turns", "field"),
    [
        # The call's texts all stand in what the tool says.
        (
            CHATML,
            [called("search", {"query": "rain"}), {"role": "tool", "content": "search query rain"}],
            "messages[0].tool_calls[0]",
        ),
        (CHATML, [user("Bob says: I am Bob"), called("list", {})], "messages[1].tool_calls[0]"),
        (CHATML, [{**user("I am Bob"), "name": "Bob"}], "messages[0].name"),
        (CHATML, [{**user("Hi"), "name": "user"}], "messages[0].name"),
        (SHOWS_FIRST_CALL, [{**user("Hi"), "name": "Ann"}], None),
        (SHOWS_FIRST_CALL, [called("f", {"a": [1, {"b": None}], "c": "it's"})], None),
        (
            SHOWS_FIRST_CALL,
            [{**called("f", {}), "tool_calls": called("f", {})["tool_calls"] * 2}],
            "messages[0].tool_calls[1]",
        ),
        (SHOWS_TRUE, [called("f", {"a": "x"})], None),
    ],
)
def test_what_stands_beside_texts_is_not_taken_for_them(
    template: str, turns: list[Message], field: str | None
) -> None:
    found = beside(template, turns)
    assert [one.path for one in found] == ([field] if field else [])


def test_a_tool_is_not_taken_for_a_word_of_the_conversation() -> None:
    tool = {"type": "function", "function": {"name": "search"}}
    (found,) = beside(CHATML, [user("Use search, please.")], tool)
    assert (found.path, found.text) == ("tools[0]", "search")


def test_many_parts_take_no_longer_than_their_rendering() -> None:
    """Counted: what is rendered is looked through once for all of them."""
    rendered = 0

    def render(turns: Any, inputs: TemplateInputs) -> str:
        nonlocal rendered
        rendered += 1
        return json.dumps([turns, inputs.tools])

    many = called("f", {f"k{i}": i for i in range(20_000)})
    tools = tuple({"name": f"t{i}", "description": "d"} for i in range(5_000))
    assert missing_beside(render, [user("q"), many], TemplateInputs(tools)) == []
    assert rendered == 1


def test_reasoning_that_says_nothing_is_no_loss() -> None:
    turns = [user("q"), assistant("<think>\n\n</think>\n\nWater.")]
    assert missing_text(rendering(STRIPS_ALL)(turns), turns) == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ()),
        (REFUSES_SYSTEM, ()),
        (KNOWN_ONLY, (Dropped.SYSTEM_TURN, Dropped.DEVELOPER_TURN)),
        (STRIPS_ALL, (Dropped.EARLIER_REASONING, Dropped.ANSWER_REASONING)),
        (STRIPS_EARLIER, (Dropped.EARLIER_REASONING,)),
    ],
)
def test_what_a_template_drops_is_found_by_samples(
    template: str, expected: tuple[Dropped, ...]
) -> None:
    assert dropped_by(rendering(template)) == expected


def test_unknown_roles_are_told_with_the_name_that_is_meant() -> None:
    meant = {"human": "user", "User": "user", "gpt": "assistant", "assitant": "assistant"}
    for role, known in meant.items():
        assert f"{known!r} is its usual name" in unknown_role(role)
    assert unknown_role("ipython")
    more = roles_named_in("{% if m['role'] == 'ipython' %}{{ m.content }}{% endif %}")
    assert not unknown_role("ipython", more)
    assert not any(map(unknown_role, ("system", "developer", "user", "assistant", "tool")))


def test_control_tokens_are_found_in_texts() -> None:
    tokens = ControlTokens(tiny_tokenizer(), allowed=["<step>"])
    assert tokens.first_in("a <|im_end|>\n<|im_start|>user") == "<|im_end|>"
    assert tokens.first_in("First.<step> < |im_end|> <br>") is None
