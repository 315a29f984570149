"""The four ways to ask for the best of n, in the order in which they win.

1. the object `guerdon` in the body: `{"best_of": 8, "strategy": "soft", …}`;
2. `best_of` in the body, as OpenAI's text completions have it;
3. the header `x-guerdon-best-of`;
4. the model's name: `policy:best-of-8`, or `policy:PRESET`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guerdon.gateway.config import BEST_OF
from guerdon.gateway.plans import PartialPlan
from guerdon.serving.errors import InvalidRequest, NotFound
from guerdon.serving.openai.replies import Json
from guerdon.settings import SettingsError, build

HEADER = "x-guerdon-best-of"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names by which the gateway's model is asked for."""

    name: str
    presets: Mapping[str, PartialPlan]
    offered: tuple[int, ...]
    """Numbers of candidates that the list has."""

    def listed(self) -> list[str]:
        """All names that are told, the bare one first."""
        numbers = (f"{self.name}:{BEST_OF}{n}" for n in self.offered)
        return [self.name, *numbers, *(f"{self.name}:{preset}" for preset in self.presets)]

    def partial_plan(self, model: str) -> PartialPlan:
        """What a name asks for; an empty one is the bare name.

        Raises:
            NotFound: it is none of them.
        """
        bare, colon, suffix = model.partition(":")
        if model and bare != self.name:
            raise NotFound(f"model: there is no {model!r} here, only {', '.join(self.listed())}")
        if not colon:
            return PartialPlan()
        if suffix in self.presets:
            return self.presets[suffix]
        number = suffix.removeprefix(BEST_OF)
        if number == suffix or not number.isascii() or not number.isdecimal() or len(number) > 9:
            raise NotFound(f"model: there is no {model!r} here, only {', '.join(self.listed())}")
        return PartialPlan(best_of=int(number))


def read_partial_plan(value: Json, header: str | None, names: ModelNames) -> PartialPlan:
    """What a request asks for, from all four places.

    Args:
        value: the body's JSON.
        header: `x-guerdon-best-of`.
        names: of the gateway's model.

    Raises:
        InvalidRequest: one of them can't be read; names it.
        NotFound: the model's name is none of the gateway's.
    """
    model = value.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest("model", "must be text")
    partial = names.partial_plan(model or "")
    if header is not None:
        if not header.isascii() or not header.isdecimal() or len(header) > 9:
            raise InvalidRequest(HEADER, f"is {header!r}, it must be a whole number")
        partial = PartialPlan(best_of=int(header)).over(partial)
    if value.get("best_of") is not None:
        if type(value["best_of"]) is not int:
            raise InvalidRequest("best_of", "must be a whole number")
        partial = PartialPlan(best_of=value["best_of"]).over(partial)
    return _extension(value.get("guerdon")).over(partial)


def _extension(value: Any) -> PartialPlan:
    """The object `guerdon` of a body."""
    if value is None:
        return PartialPlan()
    if not isinstance(value, dict):
        raise InvalidRequest("guerdon", "must be an object")
    try:
        return build(PartialPlan, {k: v for k, v in value.items() if v is not None}, "guerdon")
    except SettingsError as error:
        raise InvalidRequest("guerdon", str(error)) from error
