"""What callers and presets ask of a call, merged into one checked plan. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.gateway.strategies.registry import STRATEGIES
from guerdon.gateway.types import AnswerForm, Plan, Strategy, VoteWeight
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.waiting import MAX_TIMEOUT


@dataclass(frozen=True, kw_only=True)
class PartialPlan:
    """What one place asks for; None leaves it to the others. See `Plan`."""

    best_of: int | None = None
    strategy: Strategy | None = None
    model: str | None = None
    threshold: float | None = None
    token_budget: int | None = None
    seconds: float | None = None
    min_gain: float | None = None
    temperature: float | None = None
    weight: VoteWeight | None = None
    answer: AnswerForm | None = None
    chunk: int | None = None
    keep: float | None = None
    small_model: str | None = None
    margin: float | None = None
    timeout: float | None = None
    """Seconds for the whole call."""

    def over(self, other: PartialPlan) -> PartialPlan:
        """This, and what the other one asks for where this leaves it open.

        Where this names another strategy, the fields of the other one's are left out, but for
        those that both read.
        """
        inherited = other.given()
        if self.strategy is not None and other.strategy is not None:
            left = {*STRATEGIES[other.strategy].own} - {*STRATEGIES[self.strategy].own}
            inherited = {name: given for name, given in inherited.items() if name not in left}
        return PartialPlan(**{**inherited, **self.given()})

    def given(self) -> dict[str, Any]:
        """What is asked for, by field."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


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


_COMMON = {"best_of", "strategy", "model", "timeout"}
_POSITIVE = ("token_budget", "seconds", "temperature", "chunk", "timeout")
_NOT_NEGATIVE = ("min_gain", "margin")


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
    strategy = partial.strategy or Strategy.BEST_OF_N
    _check_fields(strategy, given)
    _check_numbers(given)
    best_of = max(limits.best_of, n) if partial.best_of is None else partial.best_of
    if not 1 <= best_of <= limits.max_best_of:
        raise InvalidRequest(
            "best_of", f"is {best_of}, it must be between 1 and {limits.max_best_of}"
        )
    if not 1 <= n <= best_of:
        raise InvalidRequest("n", f"is {n}, it must be between 1 and best_of, which is {best_of}")
    if strategy is Strategy.REJECTION and not limits.resumes:
        raise InvalidRequest(
            "guerdon.strategy",
            "is rejection, which draws candidates piece by piece: that takes a Guerdon sampler "
            "over gRPC, and this gateway draws from an OpenAI endpoint",
        )
    given["model"] = _model("guerdon.model", partial.model or limits.models[0], limits.models)
    if partial.small_model is not None:
        _model("guerdon.small_model", partial.small_model, limits.models)
    given.pop("timeout", None)
    return Plan(**{**given, "best_of": best_of, "n": n, "strategy": strategy})


def partial_plan_json(partial: PartialPlan, limits: PlanLimits) -> dict[str, Any]:
    """What a name asks for, as JSON, with the common fields that it leaves open."""
    strategy = partial.strategy or Strategy.BEST_OF_N
    common = {"best_of": limits.best_of, "model": limits.models[0]}
    return {**common, **partial.given(), "strategy": strategy.value}


def strategy_fields(limits: PlanLimits) -> dict[str, dict[str, Any]]:
    """The strategies that can be had, each with its own fields and what they hold by default.

    None stands for a field that must be given, or for no limit.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Plan)}
    return {
        strategy.value: {**dict.fromkeys(e.needed), **{name: defaults[name] for name in e.read}}
        for strategy, e in STRATEGIES.items()
        if limits.resumes or strategy is not Strategy.REJECTION
    }


def _check_fields(strategy: Strategy, given: Mapping[str, Any]) -> None:
    entry = STRATEGIES[strategy]
    for name in entry.needed:
        if name not in given:
            raise InvalidRequest(f"guerdon.{name}", f"is required by {strategy.value}")
    for name in sorted(given.keys() - _COMMON - {*entry.own}):
        owners = [s.value for s, e in STRATEGIES.items() if name in e.own]
        raise InvalidRequest(
            f"guerdon.{name}",
            f"is read by {' and '.join(owners)}, and the strategy is {strategy.value}",
        )


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in given:
        value = given[name]
        if isinstance(value, float | int) and not -1e12 < value < 1e12:
            raise InvalidRequest(f"guerdon.{name}", f"is {value}, it is too large")
        if name in _POSITIVE and not value > 0:
            raise InvalidRequest(f"guerdon.{name}", f"is {value}, it must be positive")
        if name in _NOT_NEGATIVE and not value >= 0:
            raise InvalidRequest(f"guerdon.{name}", f"is {value}, it must not be negative")
        if name == "keep" and not 0 < value <= 1:
            raise InvalidRequest("guerdon.keep", f"is {value}, it must be in (0, 1]")
        if name in ("timeout", "seconds") and not value <= MAX_TIMEOUT:
            raise InvalidRequest(f"guerdon.{name}", f"is {value}, it is too long")


def _model(field: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise InvalidRequest(field, f"is {name!r}, the reward models are {', '.join(known)}")
    return name
