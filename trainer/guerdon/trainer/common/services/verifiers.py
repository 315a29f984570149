r"""Rewards by rule: `exact`, `maths`, `regex:PATTERN`, `length:TOKENS`.

exact           1 when the last number in the response is the answer (1,234.50 is 1234.5), or, when
                the answer is no number, when the response or its last line is the answer, case,
                spacing and outer punctuation aside
maths           1 when math-verify finds the answer's value in the response
regex:PATTERN   1 when the pattern is found anywhere in the response (Python's `re`)
length:TOKENS   1 at TOKENS tokens, falling linearly to 0 at none and at twice as many

A response is worth 0 where it can't be shown to be worth more: when it holds no number, can't be
parsed, or takes more than `CHECK_SECONDS` of processor time to check.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Protocol

from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.sandbox import Checker
from guerdon.trainer.common.services.types import PromptRow

_WEIGHT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\*(.*)", re.S)
_NUMBER = re.compile(
    r"(?<![\w.,/])[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\d/]|\.\d)"
    r"|(?<![\w./])[+-]?\.\d+(?:[eE][+-]?\d+)?(?![\d/])"
)


class Verifier(Protocol):
    """A rule that says how good a response is. Safe to use from several threads."""

    needs_answer: bool
    """Whether every row must have an answer."""

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """How good a response is, 0 to 1.

        Args:
            row: what was asked.
            text: the response as all rewards see it (see `policy_text`).
            n_tokens: of the response, its ending token included.
        """
        ...

    def check(self, row: PromptRow) -> None:
        """Refuse a row that can't be verified.

        Raises:
            ValueError: says why.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


@dataclass(frozen=True, slots=True)
class WeightedVerifier:
    """A verifier with its weight in the sum of rewards."""

    name: str
    """The verifier as the settings name it, without the weight."""
    weight: float
    verifier: Verifier

    def check_rows(self, prompts: Prompts) -> None:
        """Refuse prompts that can't be verified.

        Raises:
            DataError: names the line of the first one.
        """
        for row, line in zip(prompts.rows, prompts.lines, strict=True):
            try:
                if self.verifier.needs_answer and row.answer is None:
                    raise ValueError("is missing")
                self.verifier.check(row)
            except ValueError as error:
                raise DataError(
                    f"{prompts.source}, line {line}: answer: {error} (--verifier {self.name})"
                ) from error


def split_weight(spec: str, setting: str) -> tuple[float, str]:
    """The weight of `WEIGHT*REST`, and the rest; 1 when there is none.

    Raises:
        SettingsError: the weight is 0 or not finite.
    """
    found = _WEIGHT.fullmatch(spec)
    if found is None:
        return 1.0, spec
    weight = float(found[1])
    if weight == 0 or weight in (float("inf"), float("-inf")):
        raise SettingsError(f"{setting}: the weight of {spec!r} must be finite and not 0")
    return weight, found[2]


def parse_verifier(spec: str) -> WeightedVerifier:
    """The verifier of `NAME`, `NAME:ARGUMENT` or `WEIGHT*…`.

    Raises:
        SettingsError: there is no such verifier, or its argument is wrong.
    """
    weight, name = split_weight(spec, "verifier")
    kind, colon, argument = name.partition(":")
    make = _KINDS.get(kind)
    if make is None:
        known = "exact, maths, regex:PATTERN or length:TOKENS"
        raise SettingsError(f"verifier: {name!r} is not one of {known}")
    if kind in ("exact", "maths") and colon:
        raise SettingsError(f"verifier: {kind} takes no argument: {spec!r}")
    if kind in ("regex", "length") and not argument:
        raise SettingsError(f"verifier: {kind} needs an argument: {spec!r}")
    return WeightedVerifier(name, weight, make(argument))


class Exact:
    """The last number of the response, or the response itself, is the answer."""

    needs_answer = True

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 when it is, else 0."""
        assert row.answer is not None
        right = as_number(row.answer)
        if right is not None:
            return float(last_number(text) == right)
        lines = [line for line in text.splitlines() if line.strip()]
        wanted = normalised(row.answer)
        return float(wanted in (normalised(text), normalised(lines[-1] if lines else "")))

    def check(self, row: PromptRow) -> None:
        """Refuse an answer of which nothing is left without spacing and punctuation."""
        assert row.answer is not None
        if as_number(row.answer) is None and not normalised(row.answer):
            raise ValueError(f"{row.answer!r} holds nothing to compare")

    def close(self) -> None:
        """Nothing to let go of."""


class Length:
    """How near the response is to a number of tokens."""

    needs_answer = False

    def __init__(self, argument: str) -> None:
        if not argument.isascii() or not argument.isdigit() or int(argument) < 1:
            raise SettingsError(f"verifier: length:{argument}: TOKENS must be a positive integer")
        self._target = int(argument)

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 at the target, 0 from none and from twice as many."""
        return max(0.0, 1.0 - abs(n_tokens - self._target) / self._target)

    def check(self, row: PromptRow) -> None:
        """Any row will do."""

    def close(self) -> None:
        """Nothing to let go of."""


class Regex:
    """A pattern is found in the response. Checked aside: a pattern may take exponential time."""

    needs_answer = False

    def __init__(self, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingsError(f"verifier: regex: {pattern!r}: {error}") from error
        self._pattern = pattern
        self._checker = Checker()

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 when it is found, else 0."""
        return float(self._checker.ask("regex", self._pattern, text) is True)

    def check(self, row: PromptRow) -> None:
        """Any row will do."""

    def close(self) -> None:
        """End the process that checks."""
        self._checker.close()


class Maths:
    """The response has the answer's value, by math-verify. Checked aside: SymPy may not end."""

    needs_answer = True

    def __init__(self) -> None:
        self._checker = Checker()

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 when it has, else 0."""
        assert row.answer is not None
        return float(self._checker.ask("maths", row.answer, text) is True)

    def check(self, row: PromptRow) -> None:
        """Refuse an answer that math-verify does not find equal to itself."""
        assert row.answer is not None
        if self._checker.ask("maths", row.answer, row.answer) is not True:
            raise ValueError(f"{row.answer!r} is nothing that math-verify can read")

    def close(self) -> None:
        """End the process that checks."""
        self._checker.close()


_KINDS: dict[str, Callable[[str], Verifier]] = {
    "exact": lambda _: Exact(),
    "maths": lambda _: Maths(),
    "regex": Regex,
    "length": Length,
}


def last_number(text: str) -> Decimal | None:
    """The last number in a text. Parts of fractions, dates and versions are none."""
    found: Sequence[str] = _NUMBER.findall(_plain_minus(text))
    return _decimal(found[-1]) if found else None


def as_number(text: str) -> Decimal | None:
    """The number that a text is, such as `1,234.50`, `-3` or `$5`; None when it is none."""
    bare = _plain_minus(text).strip().lstrip("$€£").rstrip("%.")
    return _decimal(bare) if _NUMBER.fullmatch(bare) else None


def normalised(text: str) -> str:
    """A text without case, outer punctuation and differences of spacing."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())

    def outer(character: str) -> bool:
        return character.isspace() or unicodedata.category(character)[0] in "PS"

    while folded and outer(folded[0]):
        folded = folded[1:]
    while folded and outer(folded[-1]):
        folded = folded[:-1]
    return folded


def _plain_minus(text: str) -> str:
    return text.replace("\u2212", "-")


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:  # an exponent beyond what can be held
        return None
