"""The final answer in a text, in a form in which equal answers are equal."""

from __future__ import annotations

import re
from fractions import Fraction

from guerdon.gateway.types import AnswerForm

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\d)|\.\d+)"
# A hyphen after a word or a number, as in 2020-05, is no sign.
_NUMBER = re.compile(rf"(?:(?<![\w)])[-+]\s*)?{_PLAIN}(?:\s*/\s*{_PLAIN})?")
_BOXED = "\\boxed{"
_LONGEST_NUMBER = 1000
"""Characters: Python refuses to read much longer ones."""


def final_answer(text: str, form: AnswerForm) -> str | Fraction | None:
    """The final answer of a text, None where it has none.

    A number is a `Fraction`, so that 0.5, .50 and 1/2 are one answer; anything else, LaTeX's
    fractions too, is text without the spaces in it.

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
    trimmed = found.strip().strip("$").strip().removesuffix(".").rstrip()
    bare = "".join(trimmed.split())
    # Matched with its spaces: "1, 234" is two numbers.
    if len(bare) <= _LONGEST_NUMBER and _NUMBER.fullmatch(trimmed):
        above, _, below = bare.replace(",", "").partition("/")
        divisor = Fraction(below or 1)
        return Fraction(above) / divisor if divisor else bare
    return bare or None
