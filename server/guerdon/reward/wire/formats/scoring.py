"""Scores what requests in other systems' formats ask for, over HTTP and gRPC alike."""

from __future__ import annotations

from typing import Any

from guerdon.reward.counting import ScoringCall
from guerdon.reward.models.registry import Registry
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.types import PriorityClass, ScoreOptions
from guerdon.reward.wire import convert
from guerdon.reward.wire.formats.format import Format, FormatRequest
from guerdon.serving.errors import InvalidRequest


class FormatScorer:
    """Finds the model that a request means, and scores what it asks for.

    Args:
        default_model: the spec for requests that name no model; empty for the only one loaded.
    """

    def __init__(
        self, scorer: Scorer, registry: Registry, limits: RequestLimits, default_model: str
    ) -> None:
        self._scorer = scorer
        self._registry = registry
        self._limits = limits
        self._default_model = default_model

    def check_count(self, field: str, count: int) -> None:
        """Refuse a field with no entries or too many."""
        convert.check_response_count(field, count, self._limits)

    def check(self, asked: FormatRequest) -> None:
        """Refuse a request with no items or too many."""
        counts = [len(item.responses) for item in asked.items]
        convert.check_item_counts(counts, self._limits)

    async def score(
        self, call: ScoringCall, format_: Format[Any], asked: FormatRequest, model: str
    ) -> Scored:
        """Score, or rank, what is asked.

        Args:
            model: as the request names it; empty where it names none.

        Raises:
            ServiceError: whatever stops it.
        """
        spec, classes = self.spec(model), call.caller.classes
        given = format_.priority
        priority = given if given.value in classes else PriorityClass(next(iter(classes)))
        options = ScoreOptions(priority=priority, truncation=asked.truncation)
        call.asks(spec, priority)
        if asked.ranks:
            return await self._scorer.rank(call, spec, asked.items[0], options)
        return await self._scorer.score(call, spec, asked.items, options)

    def spec(self, asked: str) -> str:
        """The spec of the model that a request means.

        Raises:
            InvalidRequest: it names none, and there are several.
        """
        spec = asked or self._default_model
        if not spec:
            names = sorted({revision.info.name for revision, _ in self._registry.infos()})
            if len(names) != 1:
                known = ", ".join(names) or "none"
                raise InvalidRequest("model", f"is required: {known} are served")
            return names[0]
        if self._registry.canonical(spec) is None:
            return self._registry.name_at(spec) or spec
        return spec
