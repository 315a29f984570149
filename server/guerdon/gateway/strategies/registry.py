"""Every strategy with what it reads of a plan, and what it needs of the policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from guerdon.gateway.strategies.adaptive import adaptive
from guerdon.gateway.strategies.best_of_n import best_of_n
from guerdon.gateway.strategies.cascade import cascade
from guerdon.gateway.strategies.rejection import rejection
from guerdon.gateway.strategies.soft import soft
from guerdon.gateway.strategies.threshold import threshold
from guerdon.gateway.strategies.voting import voting
from guerdon.gateway.strategies.work import Work
from guerdon.gateway.types import Plan, Ranking, Strategy
from guerdon.serving.waiting import MAX_TIMEOUT

Rules = Mapping[str, Callable[[Any], bool]]
"""Checks of a field's value, by what is said where one fails."""
POSITIVE: Rules = {"it must be positive": lambda value: value > 0}
NOT_NEGATIVE: Rules = {"it must not be negative": lambda value: value >= 0}
PART: Rules = {"it must be in (0, 1]": lambda value: 0 < value <= 1}
SECONDS: Rules = {**POSITIVE, "it is too long": lambda value: value <= MAX_TIMEOUT}


@dataclass(frozen=True, slots=True)
class StrategyEntry:
    """A strategy's function, and what it needs."""

    find: Callable[[Work], Awaitable[Ranking]]
    fields: Mapping[str, Rules] = field(default_factory=dict)
    """The fields of a plan that it reads beside the common ones."""
    needed: tuple[str, ...] = ()
    """Those of them that must be given."""
    reward_models: tuple[str, ...] = ()
    """Those of them that name a reward model."""
    resumes: bool = False
    """Whether it goes on with parts of candidates, which not every policy can."""
    saves: bool = False
    """Whether it ends the sooner, the fewer answers come back."""


STRATEGIES: Mapping[Strategy, StrategyEntry] = {
    Strategy.BEST_OF_N: StrategyEntry(best_of_n),
    Strategy.THRESHOLD: StrategyEntry(
        threshold, {"threshold": {}}, needed=("threshold",), saves=True
    ),
    Strategy.ADAPTIVE: StrategyEntry(
        adaptive,
        {"token_budget": POSITIVE, "seconds": SECONDS, "min_gain": NOT_NEGATIVE},
        saves=True,
    ),
    Strategy.VOTE: StrategyEntry(voting, {"weight": {}, "answer": {}}),
    Strategy.SOFT: StrategyEntry(soft, {"temperature": POSITIVE}),
    Strategy.REJECTION: StrategyEntry(
        rejection, {"chunk": POSITIVE, "keep": PART}, resumes=True, saves=True
    ),
    Strategy.CASCADE: StrategyEntry(
        cascade,
        {"small_model": {}, "margin": NOT_NEGATIVE},
        needed=("small_model",),
        reward_models=("small_model",),
    ),
}


def reward_models(plan: Plan) -> dict[str, str]:
    """The reward models that a plan asks for, by the field that names each."""
    names = ("model", *STRATEGIES[plan.strategy].reward_models)
    return {name: getattr(plan, name) for name in names}
