"""What callers and presets ask of a call, merged into one checked plan. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.gateway.strategies.registry import SECONDS, STRATEGIES, Rules, reward_models
from guerdon.gateway.types import Plan, PlanFields, Strategy
from guerdon.serving.errors import InvalidRequest


class PartialPlan(PlanFields):
    """What one place asks for; what is not given is left to the others, and reads as its default.

    Args:
        given: what is asked for, by field.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._given = given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartialPlan) and self._given == other._given

    def over(self, other: PartialPlan) -> PartialPlan:
        """This, and what the other one asks for where this leaves it open.

        Where this names another strategy, the fields of the other one's are left out, but for
        those that both read.
        """
        mine, inherited = self.given(), other.given()
        if "strategy" in mine and "strategy" in inherited:
            left = STRATEGIES[other.strategy].fields.keys() - STRATEGIES[self.strategy].fields
            inherited = {name: value for name, value in inherited.items() if name not in left}
        return PartialPlan(**{**inherited, **mine})

    def given(self) -> dict[str, Any]:
        """What is asked for, by field and in the order of the fields."""
        names = (field.name for field in dataclasses.fields(self))
        return {name: self._given[name] for name in names if name in self._given}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLimits:
    """What a plan may hold, and what it holds where nobody asks."""

    best_of: int
    """Candidates where nobody says how many; no fewer than the choices."""
    max_best_of: int
    models: Sequence[str]
    """Reward models; the first is the default."""
    resumes: bool
    """Whether the policy can go on with parts of candidates."""


_COMMON: Mapping[str, Rules] = {"best_of": {}, "strategy": {}, "model": {}, "timeout": SECONDS}
"""The fields that all strategies read."""


def new_plan(partial: PartialPlan, n: int, limits: PlanLimits) -> Plan:
    """The plan for what is asked.

    Args:
        partial: what all places ask for, merged.
        n: choices that come back.
        limits: what it may hold.

    Raises:
        InvalidRequest: a field is missing, can't be, or is none of the strategy's.
    """
    given = partial.given()
    strategy, entry = partial.strategy, STRATEGIES[partial.strategy]
    _check_fields(strategy, given)
    _check_values({**_COMMON, **entry.fields}, given)
    best_of = given.get("best_of", max(limits.best_of, n))
    if not 1 <= best_of <= limits.max_best_of:
        raise InvalidRequest(
            "best_of", f"is {best_of}, it must be between 1 and {limits.max_best_of}"
        )
    if not 1 <= n <= best_of:
        raise InvalidRequest("n", f"is {n}, it must be between 1 and best_of, which is {best_of}")
    if entry.resumes and not limits.resumes:
        raise InvalidRequest(
            "guerdon.strategy",
            f"is {strategy.value}, which draws candidates piece by piece: that takes a Guerdon "
            "sampler over gRPC, and this gateway draws from an OpenAI endpoint",
        )
    plan = Plan(**{**given, "best_of": best_of, "n": n, "model": partial.model or limits.models[0]})
    for name, model in reward_models(plan).items():
        if model not in limits.models:
            known = ", ".join(limits.models)
            raise InvalidRequest(f"guerdon.{name}", f"is {model!r}, the reward models are {known}")
    return plan


def plan_json(partial: PartialPlan, limits: PlanLimits) -> dict[str, Any]:
    """What a name asks for, as JSON, with the common fields that it leaves open."""
    common = {"best_of": limits.best_of, "model": limits.models[0]}
    return {**common, **partial.given(), "strategy": partial.strategy.value}


def strategies_json(limits: PlanLimits) -> dict[str, Any]:
    """The strategies that can be had, each with its own fields and what they hold by default.

    None stands for a field that must be given, or for no limit. `saving` are those that end the
    sooner, the fewer answers come back.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(PlanFields)}
    entries = {s.value: e for s, e in STRATEGIES.items() if limits.resumes or not e.resumes}
    return {
        "strategies": {
            name: {field: None if field in e.needed else defaults[field] for field in e.fields}
            for name, e in entries.items()
        },
        "saving": [name for name, e in entries.items() if e.saves],
    }


def _check_fields(strategy: Strategy, given: Mapping[str, Any]) -> None:
    entry = STRATEGIES[strategy]
    for name in entry.needed:
        if name not in given:
            raise InvalidRequest(f"guerdon.{name}", f"is required by {strategy.value}")
    for name in sorted(given.keys() - _COMMON.keys() - entry.fields.keys()):
        owners = [s.value for s, e in STRATEGIES.items() if name in e.fields]
        raise InvalidRequest(
            f"guerdon.{name}",
            f"is read by {' and '.join(owners)}, and the strategy is {strategy.value}",
        )


def _check_values(rules: Mapping[str, Rules], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if isinstance(value, float | int) and not -1e12 < value < 1e12:
            raise InvalidRequest(f"guerdon.{name}", f"is {value}, it is too large")
        for otherwise, holds in rules[name].items():
            if not holds(value):
                raise InvalidRequest(f"guerdon.{name}", f"is {value}, {otherwise}")
