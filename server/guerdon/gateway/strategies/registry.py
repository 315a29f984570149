"""Every strategy with the fields of a plan that it reads beside the common ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from guerdon.gateway.strategies.adaptive import adaptive
from guerdon.gateway.strategies.best_of_n import best_of_n
from guerdon.gateway.strategies.cascade import cascade
from guerdon.gateway.strategies.rejection import rejection
from guerdon.gateway.strategies.soft import soft
from guerdon.gateway.strategies.threshold import threshold
from guerdon.gateway.strategies.voting import voting
from guerdon.gateway.strategies.work import Work
from guerdon.gateway.types import Ranking, Strategy


@dataclass(frozen=True, slots=True)
class StrategyEntry:
    """A strategy's function, and what it reads of a plan."""

    find: Callable[[Work], Awaitable[Ranking]]
    needed: tuple[str, ...] = ()
    """Fields that must be given."""
    read: tuple[str, ...] = ()
    """Fields that may be given."""

    @property
    def own(self) -> tuple[str, ...]:
        """All fields that it reads beside the common ones."""
        return (*self.needed, *self.read)


STRATEGIES: Mapping[Strategy, StrategyEntry] = {
    Strategy.BEST_OF_N: StrategyEntry(best_of_n),
    Strategy.THRESHOLD: StrategyEntry(threshold, needed=("threshold",)),
    Strategy.ADAPTIVE: StrategyEntry(adaptive, read=("token_budget", "seconds", "min_gain")),
    Strategy.VOTE: StrategyEntry(voting, read=("weight", "answer")),
    Strategy.SOFT: StrategyEntry(soft, read=("temperature",)),
    Strategy.REJECTION: StrategyEntry(rejection, read=("chunk", "keep")),
    Strategy.CASCADE: StrategyEntry(cascade, needed=("small_model",), read=("margin",)),
}
