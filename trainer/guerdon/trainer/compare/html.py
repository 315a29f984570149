"""HTML made of nested calls. Whatever is not marked as HTML is escaped: texts are untrusted."""

from __future__ import annotations

import html
from typing import Any


class Html(str):
    """Text that is HTML already, and goes in as it is."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """A value as HTML: text with everything escaped that HTML reads."""
    return value if isinstance(value, Html) else Html(html.escape(_shown(str(value)), quote=True))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
        name: of the element; ours, never from data.
        children: texts, which are escaped, and elements. None is left out.
        attributes: values are escaped; `class_` is `class`, and `_` is `-`. None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(child) for child in children if child is not None)
    return Html(f"<{name}{given}>{inside}</{name}>")


def join(parts: Any) -> Html:
    """Elements and texts, one after the other."""
    return Html("".join(escape(part) for part in parts))


def _shown(text: str) -> str:
    """The text with what HTML allows in no form (control characters, lone surrogates) made seen."""
    return "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\n\t\r") or 0xD800 <= ord(c) <= 0xDFFF else c
        for c in text
    )
