"""The HTTP twins of `Score`, `Rank`, `ListModels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from fastapi import Body, Request
from fastapi.responses import Response

from guerdon.reward.counting import ScoringCall, ScoringCalls
from guerdon.reward.models.registry import Registry
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.types import ScoreItem
from guerdon.reward.wire import schemas
from guerdon.serving.access.identity import Role
from guerdon.serving.http.routes import Foreign, Routes, json_reply, while_connected
from guerdon.serving.http.schemas import ERRORS, ErrorReply
from guerdon.serving.openai.replies import model_entry

_ERRORS = {**ERRORS, 404: {"model": ErrorReply, "description": "No such model."}}
ROLES: Mapping[str, Role | None] = {
    "/v1/score": Role.SCORE,
    "/v1/rank": Role.SCORE,
    "/v1/models": None,
}
"""What a caller of each path needs; None: any known caller may."""
_PROMPT = "What is rain?"
_SCORE = {
    "model": "helpful",
    "items": [{"prompt": _PROMPT, "responses": ["Water that falls from clouds.", "Rain."]}],
    "options": {"priority": "online"},
}
_RANK = {
    "model": "helpful",
    "prompt": [{"role": "user", "content": _PROMPT}],
    "candidates": ["Rain.", "Water that falls from clouds."],
    "top_n": 1,
}


class RewardRoutes(Routes[ScoringCall]):
    """The reward service's routes."""

    def __init__(
        self,
        scorer: Scorer,
        registry: Registry,
        calls: ScoringCalls,
        limits: RequestLimits,
        foreign: Foreign,
    ) -> None:
        check = partial(schemas.check_counts, limits=limits)
        super().__init__("reward", calls, scorer, check, foreign)
        self._scorer = scorer
        self._registry = registry
        self._limits = limits
        self.post(self.score, schemas.ScoreBodyReply, "Score the responses of items", _ERRORS)
        self.post(self.rank, schemas.RankBodyReply, "Order candidates, best first", _ERRORS)
        self.get(self.models, schemas.ModelsReply, "The loaded models")

    async def score(
        self, request: Request, body: Annotated[schemas.ScoreBody, Body(examples=[_SCORE])]
    ) -> Response:
        """All or nothing: one item at fault fails the call."""
        with self.serve(request, body.timeout) as call:
            options = body.options.to_domain()
            call.asks(body.model, options.priority)
            size = len(await request.body())
            items = await self._scorer.off_loop(size, schemas.to_items, body, self._limits)
            scored = await while_connected(
                request, self._scorer.score(call, body.model, items, options)
            )
            return await self._scorer.off_loop(scored.reply_size, _score_reply, items, scored, call)

    async def rank(
        self, request: Request, body: Annotated[schemas.RankBody, Body(examples=[_RANK])]
    ) -> Response:
        """Equal scores stay in the order of the request."""
        with self.serve(request, body.timeout) as call:
            options = body.options.to_domain()
            call.asks(body.model, options.priority)
            size = len(await request.body())
            item = await self._scorer.off_loop(size, schemas.to_candidates, body, self._limits)
            scored = await while_connected(
                request, self._scorer.rank(call, body.model, item, options)
            )
            return await self._scorer.off_loop(
                scored.reply_size, _rank_reply, scored, body.top_n, call
            )

    async def models(self, request: Request) -> Response:
        """Ordered by name, then load time."""
        with self.serve(request):
            infos = self._registry.infos()
            return json_reply(
                schemas.ModelsReply(
                    models=[
                        schemas.model_reply(r.info, current=r.current, aliases=aliases)
                        for r, aliases in infos
                    ],
                    data=[
                        schemas.OpenAIModel(**model_entry(name, int(r.loaded_at)))
                        for r, aliases in infos
                        if r.current
                        for name in (r.info.name, *aliases)
                    ],
                )
            )


def _score_reply(items: Sequence[ScoreItem], scored: Scored, call: ScoringCall) -> Response:
    replies = [
        schemas.ItemReply(id=item.id, scores=[schemas.score_reply(s, scored.info) for s in scores])
        for item, scores in zip(items, scored.items, strict=True)
    ]
    return json_reply(
        schemas.ScoreBodyReply(
            items=replies,
            info=schemas.info_reply(scored),
            timing=schemas.timing_reply(scored, call.elapsed()),
        )
    )


def _rank_reply(scored: Scored, top_n: int, call: ScoringCall) -> Response:
    scores = scored.items[0]
    ranking = [
        schemas.RankedReply(index=i, score=schemas.score_reply(scores[i], scored.info))
        for i in scored.ranking(top_n)
    ]
    return json_reply(
        schemas.RankBodyReply(
            ranking=ranking,
            info=schemas.info_reply(scored),
            timing=schemas.timing_reply(scored, call.elapsed()),
        )
    )
