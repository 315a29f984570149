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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from guerdon.data.messages import argument_texts, text_of, tool_texts

if TYPE_CHECKING:
    from guerdon.data.messages import Message

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
    """A text of a conversation that is not in what was rendered."""

    place: int
    """The turn's place, from 0."""
    role: str
    text: str
    """The text's beginning."""
    part: Dropped | None
    """None where what a turn says is missing, which is always an error."""
    field: str = "content"
    """The part of the turn that has the text."""

    @property
    def reason(self) -> str:
        """What is wrong, without the field's name."""
        what = "reasoning" if self.part in REASONING else self.field.split("[")[0]
        what = {"content": "text", "tool_calls": "tool call"}.get(what, what)
        return f"has the {what} {self.text!r}, which the chat template leaves out"


def missing_text(rendered: str, turns: Sequence[Message]) -> list[Missing]:
    """The texts of a conversation that a template did not render.

    Texts are looked for in the order of the turns, a system turn's anywhere. White space, escapes
    of JSON, and marks around reasoning may be the template's own. Ids of tool calls are no text.

    Args:
        rendered: what the template made of them.
        turns: the conversation.
    """
    found: list[Missing] = []
    start = 0
    for place, turn in enumerate(turns):
        system = turn["role"] in ("system", "developer")
        last = place == len(turns) - 1
        end = _find_end(text_of(turn), rendered, 0 if system else start)
        if end is None:
            missing, end = _looked_into(place, turn, rendered, start, last=last)
            found += [missing] if missing else []
        if len(turn) > 2:
            found += _missing_beside(place, turn, rendered, start, end, last=last)
        if not system:
            start = end
    return found


def missing_tools(rendered: str, tools: Sequence[Mapping[str, Any]]) -> list[int]:
    """The places of tools of which a template leaves out a name or a description."""
    return [
        place
        for place, tool in enumerate(tools)
        if any(_find_end(text, rendered, 0) is None for text in tool_texts(tool))
    ]


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
    role, content = turn["role"], text_of(turn)
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


def _missing_beside(
    place: int, turn: Message, rendered: str, start: int, end: int, *, last: bool
) -> list[Missing]:
    """What is missing of a turn beside its text.

    Args:
        start: where the turn before ends in what was rendered.
        end: where the turn's text ends.
    """
    found = []
    name, reasoning = turn.get("name", ""), turn.get("reasoning_content", "")
    if name and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", rendered[start:end]):
        found.append(Missing(place, turn["role"], name, Dropped.NAME, "name"))
    if reasoning:
        thought = _find_end(reasoning, rendered, start)
        if thought is None or _find_end(text_of(turn), rendered, thought) is None:
            part = Dropped.ANSWER_REASONING if last else Dropped.EARLIER_REASONING
            text = _excerpt(reasoning)
            found.append(Missing(place, turn["role"], text, part, "reasoning_content"))
    for number, call in enumerate(turn.get("tool_calls", ())):
        function = call["function"]
        texts = [function["name"], *argument_texts(function["arguments"])]
        missing = [text for text in texts if _find_end(text, rendered, start) is None]
        if missing:
            field = f"tool_calls[{number}]"
            found.append(Missing(place, turn["role"], _excerpt(missing[0]), None, field))
    return found


def _excerpt(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _packed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())
