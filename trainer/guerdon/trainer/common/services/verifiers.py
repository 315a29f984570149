r"""Rewards that come from no served model: rules, and what users bring themselves.

exact           1 when the last number in the response is the answer (1,234.50 is 1234.5), or, when
                the answer is no number, when the response or its last line is the answer, case,
                spacing and outer punctuation aside
maths           1 when math-verify finds the answer's value in the response
regex:PATTERN   1 when the pattern is found anywhere in the response (Python's `re`)
length:TOKENS   1 at TOKENS tokens, falling linearly to 0 at none and at twice as many
MODULE:FUNCTION what a function of the user's own gives (`reward_function`)
https://…       what a service of the user's own answers (`http_reward`)

By rule, a response is worth 0 where it can't be shown to be worth more: when it holds no number,
can't be parsed, or takes more than `CHECK_SECONDS` of processor time to check.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Protocol

from guerdon.data import RowError
from guerdon.trainer.common.data.rows import missing_column
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.common.services.credentials import Credentials
from guerdon.trainer.common.services.http_reward import HttpReward
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.reward_function import FunctionVerifier
from guerdon.trainer.common.services.reward_specs import split_weight
from guerdon.trainer.common.services.sandbox import Checker
from guerdon.trainer.common.services.types import PromptRow, Sample

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`MODULE:FUNCTION`. A module that is named as a rule is can't be reached: the rule goes first."""
_NUMBER = re.compile(
    r"(?<![\w.,/])[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\d/]|\.\d)"
    r"|(?<![\w./])[+-]?\.\d+(?:[eE][+-]?\d+)?(?![\d/])"
)


class Verifier(Protocol):
    """What gives a reward for each completion of a prompt."""

    needs_answer: bool
    """Whether every row must have an answer."""

    @property
    def faults_survived(self) -> int:
        """Times that a service was away and came back."""
        ...

    def check(self, row: PromptRow) -> None:
        """Refuse a row that can't be verified.

        Raises:
            RowError: says why.
            SettingsError: there is no such verifier.
        """
        ...

    async def start(self) -> str:
        """Get ready; what tells it from another of its name, such as a hash. Empty for rules."""
        ...

    async def score(self, row: PromptRow, samples: Sequence[Sample]) -> list[float]:
        """How good each completion is: as it was given, not checked.

        Raises:
            TrainingError: that can't be had.
        """
        ...

    async def close(self) -> None:
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
                    key = prompts.answer_key
                    raise RowError(key, missing_column(key, row.extra, "--answer-key"))
                self.verifier.check(row)
            except RowError as error:
                raise DataError(
                    f"{prompts.source}, {error.at(line)} (--verifier {self.name})"
                ) from error


def parse_verifier(
    spec: str,
    *,
    patience: float = 600.0,
    request_timeout: float = 300.0,
    credentials: Credentials = Credentials(),  # noqa: B008 - frozen
) -> WeightedVerifier:
    """The verifier of `NAME`, `NAME:ARGUMENT`, `MODULE:FUNCTION`, a URL, or `WEIGHT*…`.

    Args:
        spec: of the settings.
        patience: seconds that a service may stay away.
        request_timeout: seconds for one call of a function, or for one request.
        credentials: shown to a service.

    Raises:
        SettingsError: there is no such verifier, or its argument is wrong.
    """
    weight, name = split_weight(spec, "verifier")
    kind, colon, argument = name.partition(":")
    if kind in ("http", "https"):
        url = HttpReward(name, patience, request_timeout, credentials)
        return WeightedVerifier(name, weight, url)
    make = _RULES.get(kind)
    if make is None:
        if _FUNCTION.fullmatch(name):
            return WeightedVerifier(name, weight, FunctionVerifier(name, request_timeout))
        known = "exact, maths, regex:PATTERN, length:TOKENS, MODULE:FUNCTION or https://…"
        raise SettingsError(f"verifier: {name!r} is not one of {known}")
    if kind in ("exact", "maths") and colon:
        raise SettingsError(f"verifier: {kind} takes no argument: {spec!r}")
    if kind in ("regex", "length") and not argument:
        raise SettingsError(f"verifier: {kind} needs an argument: {spec!r}")
    return WeightedVerifier(name, weight, make(argument))


class Rule:
    """A verifier that judges each response by itself, without any service."""

    needs_answer = False
    faults_survived = 0

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """How good a response is, 0 to 1. Called from several threads.

        Args:
            row: what was asked.
            text: the response as all rewards see it (see `policy_text`).
            n_tokens: of the response, its ending token included.
        """
        raise NotImplementedError

    def check(self, row: PromptRow) -> None:
        """Any row will do."""

    async def start(self) -> str:
        """Nothing to get ready."""
        return ""

    async def score(self, row: PromptRow, samples: Sequence[Sample]) -> list[float]:
        """How good each response is."""

        def work() -> list[float]:
            return [self.verify(row, sample.text, sample.tokens) for sample in samples]

        return await asyncio.to_thread(work)

    async def close(self) -> None:
        """Nothing to let go of."""


class Exact(Rule):
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
            raise RowError("answer", f"{row.answer!r} holds nothing to compare")


class Length(Rule):
    """How near the response is to a number of tokens."""

    def __init__(self, argument: str) -> None:
        if not argument.isascii() or not argument.isdigit() or int(argument) < 1:
            raise SettingsError(f"verifier: length:{argument}: TOKENS must be a positive integer")
        self._target = int(argument)

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 at the target, 0 from none and from twice as many."""
        return max(0.0, 1.0 - abs(n_tokens - self._target) / self._target)


class Regex(Rule):
    """A pattern is found in the response. Checked aside: a pattern may take exponential time."""

    def __init__(self, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise SettingsError(f"verifier: regex: {pattern!r}: {error}") from error
        self._pattern = pattern
        self._checker = Checker("regex")

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 when it is found, else 0."""
        return float(self._checker.ask(self._pattern, text) is True)

    async def close(self) -> None:
        """End the process that checks."""
        await asyncio.to_thread(self._checker.close)


class Maths(Rule):
    """The response has the answer's value, by math-verify. Checked aside: SymPy may not end."""

    needs_answer = True

    def __init__(self) -> None:
        self._checker = Checker("maths")

    def verify(self, row: PromptRow, text: str, n_tokens: int) -> float:
        """1 when it has, else 0."""
        assert row.answer is not None
        return float(self._checker.ask(row.answer, text) is True)

    def check(self, row: PromptRow) -> None:
        """Refuse an answer that math-verify does not find equal to itself."""
        assert row.answer is not None
        if self._checker.ask(row.answer, row.answer) is not True:
            raise RowError("answer", f"{row.answer!r} is nothing that math-verify can read")

    async def close(self) -> None:
        """End the process that checks."""
        await asyncio.to_thread(self._checker.close)


_RULES: dict[str, Callable[[str], Rule]] = {
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
