"""What the operations of a chat template cost, and the allowance that they pay from.

The unit is a character that is made. A payment is due before the operation: what can't be paid
for is not begun.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

BASE_ALLOWANCE = 16 * 1024 * 1024
"""Characters that the template of an empty conversation may make, in all."""
ALLOWANCE_PER_CHARACTER = 32
"""How often a template may copy the conversation's text."""
STEP = 128
"""What one call, operation or turn of a loop costs, and one element of a list that is made."""
MAX_FORMAT_WIDTH = 1000
MAX_INTEGER_BITS = 4096

_WIDTH_OF_ARGUMENT = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")
"""A width that comes from an argument: `%*d`, `{:{}}`."""


class TemplateLimit(Exception):
    """The template makes more than a conversation of this length can need."""


class _Allowance:
    """What one rendering may still make, in characters."""

    __slots__ = ("left",)

    def __init__(self, characters: int) -> None:
        self.left = characters


_allowance: ContextVar[_Allowance] = ContextVar("allowance")


def pay(characters: int) -> None:
    """Take from the allowance of the rendering that this thread does.

    Raises:
        TemplateLimit: it is used up.
    """
    allowance = _allowance.get()
    allowance.left -= characters
    if allowance.left < 0:
        raise TemplateLimit(
            "the chat template takes too much memory or time for a conversation of this length"
        )


@contextmanager
def allowed(characters: int) -> Iterator[None]:
    """What is rendered inside may make so many characters."""
    token = _allowance.set(_Allowance(characters))
    try:
        yield
    finally:
        _allowance.reset(token)


SIZED = (str, list, tuple, dict, range)


def length(value: Any) -> int:
    """Characters of a text, elements of a list."""
    return len(value) if isinstance(value, SIZED) else 0


def length_as_text(value: Any) -> int:
    """Characters that `str` would make of a value, or more."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(length_as_text(k) + length_as_text(v) + 8 for k, v in value.items())
    if isinstance(value, range):
        return STEP * len(value)
    if isinstance(value, list | tuple):
        total = 0
        for each in value:
            total += length_as_text(each) + STEP
            if total > BASE_ALLOWANCE:
                pay(total)  # a list may hold one long text many times, or itself be in it
                total = 0
        return total
    return 32


def pay_format(text: Any, arguments: Iterable[Any]) -> None:
    """Pay for a text that is formatted (`%` or `format`); widths are held to a limit."""
    too_wide = any(int(number) > MAX_FORMAT_WIDTH for number in re.findall(r"\d+", text))
    if too_wide or _WIDTH_OF_ARGUMENT.search(text):
        raise TemplateLimit(
            f"the chat template formats by a width that may pass {MAX_FORMAT_WIDTH}"
        )
    fields = text.count("%") + text.count("{")
    longest = sum(length_as_text(each) for each in arguments)
    pay(len(text) + fields * (MAX_FORMAT_WIDTH + longest))


def _pay_replace(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    pay(len(text) + text.count(old) * len(new))


def _pay_join(separator: Any, parts: Any) -> None:
    pay(length_as_text(parts) + length(parts) * (length(separator) + STEP))


def _pay_split(text: Any, sep: Any = None, *_: Any, **__: Any) -> None:
    text = str(text)
    pieces = text.count(sep) if sep else len(text) // 2
    pay(len(text) + pieces * STEP)


def _pay_width(text: Any, width: Any = 80, *_: Any) -> None:
    pay(length(text) + int(width))


STR_METHODS: dict[str, Callable[..., None] | None] = {
    **dict.fromkeys(
        (
            "strip",
            "lstrip",
            "rstrip",
            "startswith",
            "endswith",
            "lower",
            "upper",
            "title",
            "capitalize",
            "casefold",
            "swapcase",
            "find",
            "rfind",
            "index",
            "rindex",
            "count",
            "isdigit",
            "isdecimal",
            "isnumeric",
            "isalpha",
            "isalnum",
            "isspace",
            "isupper",
            "islower",
            "istitle",
            "partition",
            "rpartition",
            "removeprefix",
            "removesuffix",
        )
    ),
    **dict.fromkeys(("split", "rsplit"), _pay_split),
    **dict.fromkeys(("ljust", "rjust", "center", "zfill"), _pay_width),
    "splitlines": lambda text, *_, **__: _pay_split(text, "\n"),
    "replace": _pay_replace,
    "join": _pay_join,
    "format": None,  # `wrap_str_format` pays
}
"""The methods of texts that a template may call, and what is paid beside the text's length."""

METHODS: dict[type, frozenset[str]] = {
    str: frozenset(STR_METHODS),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("index", "count", "copy")),
    tuple: frozenset(("index", "count")),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}
"""What a template may call on values of the basic types."""


def _pay_join_filter(parts: Any, d: Any = "", *_: Any, **__: Any) -> None:
    _pay_join(d, parts)


def _pay_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text = str(text)
    pay((text.count("\n") + 1) * (length(width) if isinstance(width, str) else int(width)))


def _pay_json(value: Any, indent: Any = 0, **_: Any) -> None:
    step = length(indent) if isinstance(indent, str) else int(indent or 0)
    pay(length_as_text(value) * (6 + step * 8))


FILTERS: dict[str, Callable[..., None] | None] = {
    **dict.fromkeys(
        (
            "abs",
            "capitalize",
            "dictsort",
            "e",
            "escape",
            "float",
            "groupby",
            "int",
            "list",
            "lower",
            "map",
            "max",
            "min",
            "reject",
            "rejectattr",
            "reverse",
            "round",
            "safe",
            "select",
            "selectattr",
            "sort",
            "string",
            "title",
            "trim",
            "unique",
            "upper",
            "wordcount",
        )
    ),
    "center": _pay_width,
    "format": lambda text, *arguments, **named: pay_format(text, (*arguments, *named.values())),
    "indent": _pay_indent,
    "join": _pay_join_filter,
    "replace": _pay_replace,
    "tojson": _pay_json,
}
"""The filters that a template may use, and what is paid beside the value's length."""

FREE_FILTERS = ("attr", "count", "d", "default", "first", "items", "last", "length")
"""Filters that hand on what is there already."""

LINEAR_TESTS = ("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<",
                 "lt", "lessthan", "<=", "le", "upper", "lower")  # fmt: skip
"""Tests that read the whole of a text."""


def check_bits(bits: int) -> None:
    """Refuse integers that no template needs."""
    if bits > MAX_INTEGER_BITS:
        raise TemplateLimit("the chat template computes an integer that is too large")


def pay_product(left: Any, right: Any) -> None:
    """Pay for `left * right`."""
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int):
        pay(length(right) * max(left, 0))
    elif isinstance(right, int):
        pay(length(left) * max(right, 0))
