"""Messages of a conversation, as chat APIs send them and chat templates take them.

One normal form for everything that reads messages: content is text (parts are joined), or null
beside tool calls; a tool call's arguments are an object, as templates want them; what has no value
is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from guerdon.data.json_values import Fail, check_unicode, json_copy, json_texts, parsed, shown

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of content parts that are text."""
_SAID = frozenset(["role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id"])
_UNSHOWN = frozenset(
    ["function_call", "audio", "images", "refusal", "thinking", "thoughts", "tool_plan"]
)
"""Parts of a message that would be left out in silence."""
_RESERVED = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "chat_template", "tokenize", "raise_exception", "strftime_now", "range", "dict", "cycler",
    "joiner", "namespace", "loop", "self", "true", "false", "none",
})  # fmt: skip
"""Names that are no variables of a template's own."""


class FunctionCall(TypedDict):
    """A function that is called."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """A call of a tool, in an assistant's turn."""

    id: NotRequired[str]
    type: str
    function: FunctionCall


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str | None
    """Null only beside tool calls."""
    name: NotRequired[str]
    """Who speaks, or which tool answers."""
    reasoning_content: NotRequired[str]
    """What an assistant thought before."""
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    """The call that a tool answers."""


@dataclass(frozen=True, slots=True)
class TemplateInputs:
    """What a chat template is given beside the messages."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """Tools that the assistant may call, each a JSON schema as in OpenAI's API."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template, such as `enable_thinking`."""

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.tools or self.chat_template_kwargs)

    def columns(self) -> dict[str, Any]:
        """The columns of a row that say them (see `read_template_inputs`); none that is empty."""
        columns = {"tools": list(self.tools), "chat_template_kwargs": self.chat_template_kwargs}
        return {name: value for name, value in columns.items() if value}


NO_INPUTS = TemplateInputs()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and what the model's chat template is given beside them.

    Args:
        messages: chat turns, oldest first.
        tools: that the assistant may call, as in OpenAI's API: `{"type": "function", …}`.
        chat_template_kwargs: variables of the chat template, such as `enable_thinking`.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> TemplateInputs:
        """What the chat template is given beside the messages."""
        return TemplateInputs(tuple(self.tools), self.chat_template_kwargs)

    @classmethod
    def of(cls, messages: Sequence[Message], inputs: TemplateInputs) -> Conversation:
        """Messages with their inputs."""
        return cls(tuple(messages), inputs.tools, inputs.chat_template_kwargs)


Answer = str | Message
"""An answer: its text, or the assistant's turn where it says more than a text."""


def message_text(message: Message) -> str:
    """The text of a turn; empty where it only calls tools."""
    return message["content"] or ""


def is_plain(message: Message) -> bool:
    """Whether a turn is a role and a text, and nothing beside."""
    return len(message) == 2 and message["content"] is not None


def all_texts(conversation: Conversation) -> Iterator[str]:
    """All that a conversation says: its roles and texts, or the JSON of what is more than these."""
    for message in conversation.messages:
        if is_plain(message):
            yield message["role"]
            yield message_text(message)
        else:
            yield json.dumps(message, ensure_ascii=False)
    for value in (*conversation.tools, conversation.chat_template_kwargs):
        if value:
            yield json.dumps(dict(value), ensure_ascii=False)


def as_answer(turn: Message) -> Answer:
    """The answer that an assistant's turn is."""
    return message_text(turn) if is_plain(turn) else turn


def checked_answer(turn: Message, path: str, fail: Fail) -> Answer:
    """The answer that a turn is.

    Raises:
        Exception: from `fail`, if it is not the assistant's.
    """
    if turn["role"] != "assistant":
        raise fail(f"{path}.role", f"is {turn['role']!r}, and must be 'assistant'")
    return as_answer(turn)


def answer_turn(answer: Answer) -> Message:
    """The assistant's turn that an answer is."""
    return Message(role="assistant", content=answer) if isinstance(answer, str) else answer


def texts_in(message: Message) -> Iterator[tuple[str, str]]:
    """Every text of a message but its role, with its path in the message."""
    yield "content", message_text(message)
    for key in ("name", "reasoning_content", "tool_call_id"):
        if key in message:
            yield key, str(message[key])
    for place, call in enumerate(message.get("tool_calls", ())):
        path = f"tool_calls[{place}]"
        yield f"{path}.id", call.get("id", "")
        yield f"{path}.function.name", call["function"]["name"]
        for text in json_texts(call["function"]["arguments"]):
            yield f"{path}.function.arguments", text


def read_message(entry: Any, path: str, fail: Fail, *, strict: bool = False) -> Message:
    """A message in its normal form.

    Args:
        entry: with `role`, `content` and the other keys of `Message`. Content may be parts of
            text; arguments of a tool call may be JSON.
        path: of the message, for errors.
        fail: makes the error.
        strict: refuse keys that messages don't have, even harmless ones.

    Raises:
        Exception: from `fail`, naming the part that is wrong.
    """
    given = _values(entry, path, fail, strict=strict)
    role = given["role"]
    calls = [
        _tool_call(call, f"{path}.tool_calls[{i}]", fail)
        for i, call in enumerate(_list(given.get("tool_calls", []), f"{path}.tool_calls", fail))
    ]
    if calls and role != "assistant":
        raise fail(f"{path}.tool_calls", f"are the assistant's, and the role is {role!r}")
    content = given.get("content")
    if content is not None or not calls:
        content = _text(content, f"{path}.content", fail)
    found = Message(role=role, content=content)
    if name := _optional_text(given, "name", path, fail):
        found["name"] = name
    if reasoning := _optional_text(given, "reasoning_content", path, fail):
        found["reasoning_content"] = reasoning
    if calls:
        found["tool_calls"] = calls
    if call_id := _optional_text(given, "tool_call_id", path, fail):
        found["tool_call_id"] = call_id
    return found


def _values(entry: Any, path: str, fail: Fail, *, strict: bool) -> dict[str, Any]:
    """The keys of a message that have a value, `role` among them, and none that is not read."""
    if not isinstance(entry, Mapping):
        raise fail(path, 'must be an object with "role" and "content"')
    given = {key: value for key, value in entry.items() if value is not None and value != []}
    role = given.get("role")
    if not isinstance(role, str):
        raise fail(f"{path}.role", "must be text")
    if not role:
        raise fail(f"{path}.role", "is empty")
    check_unicode(role, f"{path}.role", fail)
    thought = given.pop("reasoning", None)  # another name for it, of vLLM and OpenRouter
    if thought and given.setdefault("reasoning_content", thought) != thought:
        if given["reasoning_content"]:
            raise fail(f"{path}.reasoning", "differs from reasoning_content, which is the same")
        given["reasoning_content"] = thought
    for key in sorted(given.keys() - _SAID, key=str):
        if strict or (key in _UNSHOWN and given[key]):
            raise fail(f"{path}.{shown(key)}", "is not part of a message that a model is shown")
    return given


def read_tools(value: Any, path: str, fail: Fail) -> tuple[Mapping[str, Any], ...]:
    """Tools in the order given, from a list of JSON schemas; each, or all, may be JSON.

    Null is none.

    Raises:
        Exception: from `fail`, naming what is wrong.
    """
    if value is None:
        return ()
    tools = _list(parsed(value, path, fail), path, fail)
    return tuple(_tool(tool, f"{path}[{place}]", fail) for place, tool in enumerate(tools))


def read_template_kwargs(value: Any, path: str, fail: Fail) -> Mapping[str, Any]:
    """Variables of a chat template, from an object or its JSON; none for null.

    Raises:
        Exception: from `fail`, naming what is wrong.
    """
    if value is None:
        return {}
    values = parsed(value, path, fail)
    if not isinstance(values, Mapping):
        raise fail(path, "must be an object")
    checked: dict[str, Any] = json_copy(values, path, fail)
    for name in checked:
        if name in _RESERVED or name.endswith("_token"):
            raise fail(f"{path}.{shown(name)}", "is no variable that a conversation may set")
    return checked


def read_template_inputs(row: Mapping[str, Any], fail: Fail) -> TemplateInputs:
    """The `tools` and `chat_template_kwargs` of a row or of a request's body.

    Raises:
        Exception: from `fail`, naming what is wrong.
    """
    tools = read_tools(row.get("tools"), "tools", fail)
    name = "chat_template_kwargs"
    kwargs = read_template_kwargs(row.get(name), name, fail)
    return TemplateInputs(tools, kwargs) if tools or kwargs else NO_INPUTS


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function of a tool, which some data sets give bare."""
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def _tool(value: Any, path: str, fail: Fail) -> Mapping[str, Any]:
    tool = parsed(value, path, fail)
    name = _function(tool).get("name") if isinstance(tool, Mapping) else None
    if not isinstance(name, str) or not name:
        raise fail(path, 'must be an object with a "function" that has a name')
    checked: Mapping[str, Any] = json_copy(tool, path, fail)
    return checked


def _tool_call(entry: Any, path: str, fail: Fail) -> ToolCall:
    if not isinstance(entry, Mapping):
        raise fail(path, 'must be an object with a "function"')
    kind = entry.get("type") or "function"
    if kind != "function":
        raise fail(f"{path}.type", f"is {shown(kind)!r}, and only calls of functions are read")
    function = _function(entry)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise fail(f"{path}.function.name", "is required")
    check_unicode(name, f"{path}.function.name", fail)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parsed(arguments or "{}", f"{path}.function.arguments", fail)
    if not isinstance(arguments, Mapping | None):
        raise fail(f"{path}.function.arguments", "must be an object, or the JSON of one")
    checked = json_copy(arguments or {}, f"{path}.function.arguments", fail)
    call = ToolCall(type="function", function=FunctionCall(name=name, arguments=checked))
    call_id = _optional_text(entry, "id", path, fail)
    return ToolCall(id=call_id, **call) if call_id else call


def _text(content: Any, path: str, fail: Fail) -> str:
    """Text as it is, and the parts of text joined with nothing between."""
    if isinstance(content, str):
        check_unicode(content, path, fail)
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise fail(path, "must be text, or a list of text parts")
    texts = []
    for place, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type") not in TEXT_PARTS:
            raise fail(f"{path}[{place}]", "must be a part of type text: no other kind is read")
        check_unicode(text, f"{path}[{place}].text", fail)
        texts.append(text)
    return "".join(texts)


def _optional_text(entry: Mapping[str, Any], key: str, path: str, fail: Fail) -> str:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise fail(f"{path}.{key}", "must be text")
    check_unicode(value or "", f"{path}.{key}", fail)
    return value or ""


def _list(value: Any, path: str, fail: Fail) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise fail(path, "must be a list")
    return value
