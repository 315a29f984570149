"""Values of JSON that come with a conversation: arguments of calls, tools, variables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Fail = Callable[[str, str], Exception]
"""Makes an error of a field's path and of what is wrong with it."""

_MOST_BITS = 4096
"""Most bits of an integer: Python writes no longer ones as text."""
MOST_LEVELS = 24
"""Lists and objects within each other, in JSON that comes with a conversation."""


def json_texts(value: Any) -> list[str]:
    """Every key and every value of an object of JSON, as text."""
    if isinstance(value, Mapping):
        return [text for key, entry in value.items() for text in (str(key), *json_texts(entry))]
    if isinstance(value, str):
        return [value]
    if isinstance(value, Sequence):
        return [text for entry in value for text in json_texts(entry)]
    return [] if value is None or isinstance(value, bool) else [json.dumps(value)]


def parsed(value: Any, path: str, fail: Fail) -> Any:
    """JSON where a value is text, and other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise fail(path, "is not valid JSON, or has a key twice") from None


def _refuse(name: str) -> None:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def json_copy(value: Any, path: str, fail: Fail, levels: int = MOST_LEVELS) -> Any:
    """A copy of a value; what JSON has not is refused, for templates print it in their own ways."""
    if levels == 0:
        raise fail(path, f"has more than {MOST_LEVELS} lists and objects within each other")
    if isinstance(value, Mapping):
        return {
            _key(key, path, fail): json_copy(entry, f"{path}.{shown(key)}", fail, levels - 1)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            json_copy(entry, f"{path}[{place}]", fail, levels - 1)
            for place, entry in enumerate(value)
        ]
    if isinstance(value, str):
        check_unicode(value, path, fail)
    elif isinstance(value, float) and not math.isfinite(value):
        raise fail(path, "is not a finite number")
    elif isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise fail(path, "has too many digits")
    elif not isinstance(value, int | float | None):
        raise fail(path, f"is a {type(value).__name__}, which JSON has not")
    return value


def _key(key: Any, path: str, fail: Fail) -> str:
    if not isinstance(key, str):
        raise fail(path, f"has the key {shown(key)!r}, which is no text")
    check_unicode(key, path, fail)
    return key


def shown(key: Any) -> str:
    """The beginning of a key, as errors quote it."""
    return str(key)[:64].encode("utf-8", "replace").decode()


def check_unicode(text: str, path: str, fail: Fail) -> None:
    """Refuse half of a surrogate pair, which JSON can escape and tokenizers don't take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise fail(path, "is not valid Unicode") from None
