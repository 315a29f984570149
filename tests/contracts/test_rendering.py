"""What is found missing of conversations, with chat templates as published models have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support import tool_talk as talk
from tests.support.tiny import CHATML, tiny_tokenizer

from guerdon.data import (
    ControlTokens,
    Dropped,
    Message,
    TemplateInputs,
    dropped_by,
    missing_text,
    missing_tools,
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
BOTH: Message = {**talk.CALLED, "content": "Let me see.", "reasoning_content": "I ask."}  # type: ignore[typeddict-item]
PUBLISHED = {
    # What templates of published models leave out of a call with its answer, of a turn that thinks,
    # speaks and calls, and whether they leave the tools out.
    "qwen3": ([], [], False),
    "qwen3_6": ([], [], False),
    "glm4moe": ([], [], False),
    "nemotron_3_nano": ([], [], False),
    "qwen2_5": ([], ["reasoning_content"], False),
    "gptoss": ([], ["reasoning_content"], False),
    "llama3_1": ([], ["content", "reasoning_content"], False),
    "deepseekv3": ([], ["reasoning_content"], True),
    "lfm2": (["tool_calls[0]", "name"], ["reasoning_content", "tool_calls[0]"], False),
    "llama3": (["tool_calls[0]", "name"], ["reasoning_content", "tool_calls[0]"], True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_templates_leave_out_of_calls_is_found(name: str) -> None:
    answered, spoken, no_tools = PUBLISHED[name]
    tokenizer = tiny_tokenizer(chat_template=talk.template(name))
    turns = [read_message(turn, "", ValueError) for turn in talk.as_sent()]
    inputs = TemplateInputs((talk.TOOL,))
    for said, missing in (
        ([*turns, assistant(talk.ANSWER)], answered),
        ([*turns[:2], BOTH], spoken),
    ):
        rendered = render_chat(tokenizer, said, inputs)
        assert [entry.field for entry in missing_text(rendered, said)] == missing
        assert missing_tools(rendered, [talk.TOOL]) == ([0] if no_tools else [])


def test_reasoning_beside_an_answer_is_found_like_reasoning_in_it() -> None:
    for earlier in (True, False):
        turns = [user("q"), THINKS, *([user("r"), assistant("s")] if earlier else [])]
        (found,) = missing_text(rendering(CHATML)(turns), turns)
        part = Dropped.EARLIER_REASONING if earlier else Dropped.ANSWER_REASONING
        assert (found.part, found.text) == (part, "Clouds.")
    # It is said in the answer, but not before it.
    turns = [user("q"), {**assistant("Rain, rain."), "reasoning_content": "Rain"}]
    assert [one.part for one in missing_text(rendering(CHATML)(turns), turns)] == [
        Dropped.ANSWER_REASONING
    ]


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
