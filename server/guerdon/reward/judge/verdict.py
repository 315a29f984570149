"""Verdicts read from a judge's reply: by its last line, or by a field of JSON. Pure functions.

Nothing is guessed: a reply has one verdict at its place, or none. A reply may quote the answer
that it judges, so a verdict elsewhere in the text never counts, and one that says something else
makes the reply unclear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from guerdon.data.json_values import parsed
from guerdon.reward.judge.schema import ReplySchema
from guerdon.reward.judge.settings import PREFERENCES, JudgeSettings

MAX_LINE = 200
"""Characters of the longest line that may be a verdict."""
_NUMBER = r"-?\d+(?:\.\d+)?"
_MEANINGS = {
    1.0: "the first response is better",
    -1.0: "the second is better",
    0.0: "neither is",
}


class NoJudgeVerdict(Exception):
    """A reply from which no verdict can be read; the text says why, and quotes nothing of it."""


class JudgeVerdictReader:
    """Reads the replies of one judge.

    Args:
        settings: of the judge.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = verdict = settings.verdict
        self._values: Mapping[str, float] = verdict.values
        if settings.ask == "compare" and not self._values:
            self._values = PREFERENCES
        self.label = "Verdict" if self._values else "Score"
        """What the last line begins with, unless the settings have a pattern of their own."""
        known = "|".join(map(re.escape, self._values)) or _NUMBER
        self._pattern = re.compile(verdict.pattern or f"{self.label}: ({known})", re.ASCII)
        self._compares = settings.ask == "compare"
        self.schema: Mapping[str, Any] = verdict.schema or self._default_schema()
        """The JSON schema of a reply."""
        self._checked_by = (
            ReplySchema(self.schema, "schema", _no_verdict) if verdict.form == "json" else None
        )

    @property
    def words(self) -> str:
        """The words that are verdicts, and what they mean to a judge that compares, for a
        template; empty where verdicts are numbers."""
        meanings = _MEANINGS if self._compares else {}
        named = [
            f"{word} ({meanings[number]})" if number in meanings else word
            for word, number in self._values.items()
        ]
        return ", ".join(named)

    def read(self, reply: str) -> float:
        """The number of a reply's verdict.

        Raises:
            NoJudgeVerdict: it has none, or not one alone.
        """
        return self._in_json(reply, self._checked_by) if self._checked_by else self._in_text(reply)

    def _default_schema(self) -> dict[str, Any]:
        """The schema of the verdict alone, or of a reason and the verdict."""
        settings = self._settings
        verdict: dict[str, Any] = {"type": "number"}
        verdict |= {"minimum": settings.lowest, "maximum": settings.highest}
        if self._values:
            verdict = {"type": "string", "enum": list(self._values)}
        reason = {"reason": {"type": "string"}} if settings.reason else {}
        properties = {**reason, settings.field: verdict}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def _in_text(self, reply: str) -> float:
        lines = [line for line in map(str.strip, reply.splitlines()) if line]
        if not lines:
            raise NoJudgeVerdict("the reply is empty")
        found = [self._line(line) for line in lines]
        if found[-1] is None:
            raise NoJudgeVerdict("the last line of the reply is no verdict")
        if len({text for text in found if text is not None}) > 1:
            raise NoJudgeVerdict("the reply has several verdicts that differ")
        return self._number(found[-1])

    def _line(self, line: str) -> str | None:
        match = self._pattern.fullmatch(line) if len(line) <= MAX_LINE else None
        return match[1] if match else None

    def _in_json(self, reply: str, schema: ReplySchema) -> float:
        found = parsed(reply, "the reply", _no_verdict)
        schema.check(found, "the reply", _no_verdict)
        return self._number(found[self._settings.field])

    def _number(self, verdict: Any) -> float:
        """What a verdict stands for."""
        if self._values:
            if not isinstance(verdict, str) or verdict not in self._values:
                raise NoJudgeVerdict("the verdict is none of the words that are known")
            return float(self._values[verdict])
        try:
            number = float(verdict)
        except (TypeError, ValueError, OverflowError):
            raise NoJudgeVerdict("the verdict is no number") from None
        if not self._settings.lowest <= number <= self._settings.highest:
            raise NoJudgeVerdict("the verdict is outside the range")
        return number


def _no_verdict(path: str, why: str) -> NoJudgeVerdict:
    return NoJudgeVerdict(f"{path} {why}")
