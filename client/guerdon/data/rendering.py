"""Whether a chat template shows the model all of a conversation.

A template is a program. It may render a text as nothing because it wants lists of parts, leave out
turns whose role it does not know, or strip the reasoning of earlier turns; the model then scores,
or learns from, another conversation than the one that was given. Trainer and servers look at what
was rendered with the functions here, which need neither torch nor jinja2.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from guerdon.data.messages import TemplateInputs, message_text

if TYPE_CHECKING:
    from guerdon.data.messages import Message, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that chat templates are written for. Many templates print any other one too, but no model
saw it in training."""
_MEANT = {
    "human": "user", "prompter": "user", "customer": "user", "question": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "chatbot": "assistant",
    "model": "assistant", "ai": "assistant", "answer": "assistant", "instruction": "system",
}  # fmt: skip
"""Names that data sets (ShareGPT, OpenAssistant) use for these roles."""
_QUOTED = re.compile(r"""["']([A-Za-z][\w-]*)["']""")
_REASONING_END = re.compile(
    r"</(?:think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|◁/think▷"
    r"|<\|channel\|>final<\|message\|>"
)
_REASONING_MARK = re.compile(
    r"</?(?:think|thinking|thought|reasoning|seed:think)>|\[/?THINK\]|◁/?think▷"
    r"|<\|channel\|>(?:analysis|final)<\|message\|>"
)
_SHOWN = 60
"""Characters of a missing text that an error quotes."""
_MOST_MISSING = 8
"""Texts of turns, each an error by itself, after which no more are looked for."""


class Dropped(StrEnum):
    """What a template may leave out on purpose."""

    SYSTEM_TURN = "system_turn"
    DEVELOPER_TURN = "developer_turn"
    EARLIER_REASONING = "earlier_reasoning"
    """What stands before `</think>`, or another such mark, in a turn before the last."""
    ANSWER_REASONING = "answer_reasoning"
    """What stands before such a mark in the last turn."""
    NAME = "name"
    """Who speaks, or which tool answers."""


REASONING = frozenset({Dropped.EARLIER_REASONING, Dropped.ANSWER_REASONING})


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of a conversation that is not in what was rendered."""

    place: int
    """The turn's place, from 0; -1 for what is given beside the turns."""
    role: str
    text: str
    """The text's beginning."""
    part: Dropped | None
    """None where what a turn says is missing, which is always an error."""
    field: str = "content"
    """The part of the turn, or what is given beside the turns."""

    @property
    def path(self) -> str:
        """The field's path in the conversation."""
        return self.field if self.place < 0 else f"messages[{self.place}].{self.field}"

    @property
    def reason(self) -> str:
        """What is wrong, without the field's name."""
        if self.field.startswith("chat_template_kwargs"):
            return "is no variable that the chat template reads"
        what = "reasoning" if self.part in REASONING else self.field.split("[")[0]
        names = {"content": "text", "tool_calls": "tool call", "tools": "tool"}
        return f"has the {names.get(what, what)} {self.text!r}, which the chat template leaves out"


def missing_text(rendered: str, turns: Sequence[Message]) -> list[Missing]:
    """The texts of a conversation that a template did not render.

    Texts are looked for in the order of the turns, a system turn's anywhere. White space, escapes
    of JSON, and marks around reasoning may be the template's own. A few errors are enough.

    Args:
        rendered: what the template made of them.
        turns: the conversation.
    """
    found: list[Missing] = []
    start = 0
    for place, turn in enumerate(turns):
        system = turn["role"] in ("system", "developer")
        last = place == len(turns) - 1
        end = _find_end(message_text(turn), rendered, 0 if system else start)
        if end is None:
            missing, end = _looked_into(place, turn, rendered, start, last=last)
            found += [missing] if missing else []
        if not system and "tool_calls" not in turn:  # calls may be shown before their turn's text
            start = end
        if sum(one.part is None for one in found) == _MOST_MISSING:
            break
    return found


def missing_beside(
    render: Callable[[Sequence[Message], TemplateInputs], str],
    turns: Sequence[Message],
    inputs: TemplateInputs,
) -> list[Missing]:
    """What a template leaves out beside the texts: names, reasoning, calls of tools, and tools.

    Found by rendering once more with a mark in the place of each: every key and value of a call's
    arguments; of a tool its name, its description and the names of its parameters. Ids of calls are
    no text, and other parts of a tool's schema are the template's to show.

    Args:
        render: the template; it may raise what it likes.
        turns: the conversation.
        inputs: what the template is given beside it.
    """
    if not inputs.tools and all(len(turn) == 2 for turn in turns):
        return []
    marks = _Marks()
    tools = tuple(marks.tool(place, tool) for place, tool in enumerate(inputs.tools))
    marked = [
        marks.turn(place, turn, last=place == len(turns) - 1) for place, turn in enumerate(turns)
    ]
    return marks.missing(render(marked, TemplateInputs(tools, inputs.chat_template_kwargs)))


class _Marks:
    """Marks that stand in a conversation in the place of its parts."""

    def __init__(self) -> None:
        self._stem = f"q{secrets.token_hex(4)}x"  # which no text can hold by intent
        self._parts: dict[str, Missing] = {}

    def missing(self, rendered: str) -> list[Missing]:
        """The parts whose marks were not rendered, one for each field."""
        shown = set(re.findall(self._stem + r"\d+z", rendered))
        missing = [part for mark, part in self._parts.items() if mark not in shown]
        return list({one.path: one for one in reversed(missing)}.values())[::-1]

    def turn(self, place: int, turn: Message, *, last: bool) -> Message:
        """A turn with marks beside its text."""
        marked, role = turn.copy(), turn["role"]
        if "name" in turn:
            name = Missing(place, role, turn["name"], Dropped.NAME, "name")
            marked["name"] = self._mark(name)
        if "reasoning_content" in turn:
            part = Dropped.ANSWER_REASONING if last else Dropped.EARLIER_REASONING
            text = _excerpt(turn["reasoning_content"])
            marked["reasoning_content"] = self._mark(
                Missing(place, role, text, part, "reasoning_content")
            )
        if "tool_calls" in turn:
            marked["tool_calls"] = [
                self._call(call, partial(Missing, place, role, part=None, field=f"tool_calls[{i}]"))
                for i, call in enumerate(turn["tool_calls"])
            ]
        return marked

    def tool(self, place: int, tool: Mapping[str, Any]) -> Mapping[str, Any]:
        """A tool with marks for its name, description and parameters' names."""
        beside = partial(Missing, -1, "", part=None, field=f"tools[{place}]")
        inner = tool.get("function")
        function = dict(inner if isinstance(inner, Mapping) else tool)
        function["name"] = self._mark(beside(text=_excerpt(function["name"])))
        if isinstance(function.get("description"), str) and function["description"].strip():
            function["description"] = self._mark(beside(text=_excerpt(function["description"])))
        parameters = function.get("parameters")
        parameters = parameters if isinstance(parameters, Mapping) else {}
        properties = parameters.get("properties")
        if isinstance(properties, Mapping):
            names = {key: self._mark(beside(text=_excerpt(key))) for key in properties}
            renamed = {names[key]: value for key, value in properties.items()}
            function["parameters"] = {**parameters, "properties": renamed}
            required = parameters.get("required")
            if isinstance(required, list):
                function["parameters"]["required"] = [
                    names.get(key, key) if isinstance(key, str) else key for key in required
                ]
        return {**tool, "function": function} if isinstance(inner, Mapping) else function

    def _call(self, call: ToolCall, missing: Callable[..., Missing]) -> ToolCall:
        function = call["function"]
        name = self._mark(missing(text=_excerpt(function["name"])))
        arguments = {
            self._mark(missing(text=_excerpt(key))): self._value(value, missing)
            for key, value in function["arguments"].items()
        }
        marked: ToolCall = {**call, "function": {"name": name, "arguments": arguments}}
        return marked

    def _value(self, value: Any, missing: Callable[..., Missing]) -> Any:
        if isinstance(value, Mapping):
            return {
                self._mark(missing(text=_excerpt(key))): self._value(entry, missing)
                for key, entry in value.items()
            }
        if isinstance(value, list):
            return [self._value(entry, missing) for entry in value]
        return self._mark(missing(text=_excerpt(str(value))))

    def _mark(self, part: Missing) -> str:
        mark = f"{self._stem}{len(self._parts)}z"
        self._parts[mark] = part
        return mark


def dropped_by(render: Callable[[list[Message]], str]) -> tuple[Dropped, ...]:
    """What a template leaves out of conversations, found by rendering samples.

    Args:
        render: the template; it may raise what it likes for a conversation that it refuses.
    """
    question, answer = _turn("user", "Ask 7f3a"), _turn("assistant", "Answer 91bc")
    thought = [
        _turn("assistant", f"<think>\nReason {at}\n</think>\n\nAnswer {at}")
        for at in ("c0d1", "c0d2")
    ]
    samples = (
        [_turn("system", "Rule 5e8d"), question, answer],
        [_turn("developer", "Rule 5e8e"), question, answer],
        [question, thought[0], _turn("user", "Ask 7f3b"), thought[1]],
    )
    found: set[Dropped] = set()
    for turns in samples:
        try:
            rendered = render(turns)
        except Exception:  # noqa: S112 - what it refuses is not left out; templates raise anything
            continue
        found |= {missing.part for missing in missing_text(rendered, turns) if missing.part}
    return tuple(part for part in Dropped if part in found)


def roles_named_in(template: str) -> frozenset[str]:
    """Roles that a template may know besides `ROLES`: every word in quotes in its source."""
    return frozenset(_QUOTED.findall(template))


def unknown_role(role: str, more: Collection[str] = ()) -> str:
    """Why a role is none that a model can have been trained on; empty for one that may be.

    Args:
        role: of a turn.
        more: roles that are known besides `ROLES`.
    """
    if role in ROLES or role in more:
        return ""
    plain = role.strip().casefold()
    near = difflib.get_close_matches(plain, ROLES, n=1)
    meant = _MEANT.get(plain) or (near[0] if near else "")
    hint = f": {meant!r} is its usual name" if meant else ""
    return f"is {role!r}, not one of {', '.join(ROLES)}{hint}"


class ControlTokens:
    """The special tokens of a tokenizer, as a text may spell them.

    A tokenizer makes the control token of `<|im_end|>` in a text, so whoever writes the text can
    end their turn and begin another one.

    Args:
        tokenizer: of `transformers`.
        allowed: special tokens that a text may hold, such as a step marker.
    """

    def __init__(self, tokenizer: Any, *, allowed: Collection[str] = ()) -> None:
        special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
        special |= set(tokenizer.all_special_tokens)
        longest_first = sorted(special - {*allowed, ""}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def first_in(self, text: str) -> str | None:
        """The first control token that a text spells; None where there is none."""
        found = self._pattern.search(text)
        return found.group() if found else None


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _find_end(text: str, rendered: str, start: int) -> int | None:
    """The end of a text in what was rendered, from `start` on; None where it is not there."""
    text = text.strip()
    at = rendered.find(text, start)
    if at >= 0:
        return at + len(text)
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    at = rendered.find(escaped, start)
    if at >= 0:
        return at + len(escaped)
    return start if _packed(text) in _packed(rendered[start:]) else None


def _looked_into(
    place: int, turn: Message, rendered: str, start: int, *, last: bool
) -> tuple[Missing | None, int]:
    """What is missing of a turn whose text is not in what was rendered, and where the rest ends."""
    role, content = turn["role"], message_text(turn)
    if role in ("system", "developer"):
        part = Dropped.SYSTEM_TURN if role == "system" else Dropped.DEVELOPER_TURN
        return Missing(place, role, _excerpt(content), part), start
    ends = list(_REASONING_END.finditer(content)) if role == "assistant" else []
    if ends:
        reasoning = _REASONING_MARK.sub("", content[: ends[-1].start()])
        said = content[ends[-1].end() :]
        shown = _find_end(reasoning, rendered, start)
        end = _find_end(said, rendered, start)  # the first place: what follows is not before it
        if shown is not None and end is not None and _find_end(said, rendered, shown) is not None:
            return None, end
        if end is not None and (said.strip() or not last):
            part = Dropped.ANSWER_REASONING if last else Dropped.EARLIER_REASONING
            return Missing(place, role, _excerpt(reasoning), part), end
    return Missing(place, role, _excerpt(content), None), start


def _excerpt(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _packed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())
