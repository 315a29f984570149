"""The final answer in a text, in a form in which equal answers are equal."""

from __future__ import annotations

import re
from fractions import Fraction

from guerdon.gateway.types import AnswerForm

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d)|[-+]?\.\d+")
_BOXED = "\\boxed{"
_LONGEST_NUMBER = 1000
"""Characters: Python refuses to read much longer ones."""


def final_answer(text: str, form: AnswerForm) -> str | Fraction | None:
    """The final answer of a text, None where it has none.

    A number is a `Fraction`, so that 0.5 and .50 are one answer; anything else is text without
    the spaces in it.

    Args:
        text: a candidate's.
        form: `boxed` takes what the last `\\boxed{…}` holds, `number` the last number, `line` the
            last line that is not blank.
    """
    if form == "boxed":
        found = _last_boxed(text)
    elif form == "number":
        numbers = _NUMBER.findall(text)
        found = numbers[-1] if numbers else None
    else:
        found = next((line for line in reversed(text.splitlines()) if line.strip()), None)
    return None if found is None else _normal(found)


def _last_boxed(text: str) -> str | None:
    """What the last box holds, braces matched; None where it has no end."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    start, depth = start + len(_BOXED), 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None


def _normal(found: str) -> str | Fraction | None:
    bare = "".join(found.split()).strip("$").removesuffix(".")
    if not bare:
        return None
    if len(bare) <= _LONGEST_NUMBER and _NUMBER.fullmatch(bare):
        return Fraction(bare.replace(",", ""))
    return bare
