"""The HTTP twins of `Score`, `Rank`, `ListModels`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from guerdon.reward.call_metrics import CallMetrics, ScoringCall
from guerdon.reward.models.registry import Registry
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.types import ScoreItem
from guerdon.reward.wire import schemas
from guerdon.serving.access.identity import Role
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.app import while_connected
from guerdon.serving.http.bodies import body_route, parse_body
from guerdon.serving.http.schemas import ERRORS, ErrorReply
from guerdon.serving.process.lifecycle import Lifecycle

_ERRORS = {**ERRORS, 404: {"model": ErrorReply, "description": "No such model."}}
_METHODS = {"/v1/score": "http_score", "/v1/rank": "http_rank"}
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


class RewardRoutes:
    """Adds the reward routes to an app."""

    def __init__(
        self,
        scorer: Scorer,
        registry: Registry,
        lifecycle: Lifecycle,
        calls: CallMetrics,
        limits: RequestLimits,
    ) -> None:
        self._scorer = scorer
        self._registry = registry
        self._lifecycle = lifecycle
        self._calls = calls
        self._limits = limits

    def add_to(self, app: FastAPI) -> None:
        """Add them."""
        router = APIRouter(prefix="/v1", tags=["reward"], route_class=body_route(self._parse))
        router.add_api_route(
            "/score",
            self.score,
            methods=["POST"],
            response_model=schemas.ScoreBodyReply,
            summary="Score the responses of items",
            responses=_ERRORS,
        )
        router.add_api_route(
            "/rank",
            self.rank,
            methods=["POST"],
            response_model=schemas.RankBodyReply,
            summary="Order candidates, best first",
            responses=_ERRORS,
        )
        router.add_api_route(
            "/models",
            self.models,
            methods=["GET"],
            response_model=schemas.ModelsReply,
            summary="The loaded models",
            responses={code: _ERRORS[code] for code in (401, 503)},
        )
        app.include_router(router)

    async def score(
        self, request: Request, body: Annotated[schemas.ScoreBody, Body(examples=[_SCORE])]
    ) -> Response:
        """All or nothing: one item at fault fails the call."""
        with self._track("http_score", body) as call, self._lifecycle.admit():
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
        with self._track("http_rank", body) as call, self._lifecycle.admit():
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

    async def models(self) -> Response:
        """Ordered by name, then load time."""
        with self._calls.track("http_models", None), self._lifecycle.admit():
            return _reply(
                schemas.ModelsReply(
                    models=[
                        schemas.model_reply(r.info, current=r.current, aliases=aliases)
                        for r, aliases in self._registry.infos()
                    ]
                )
            )

    async def _parse(self, request: Request, kind: type[BaseModel]) -> BaseModel:
        """The body of a request, parsed in a thread if it is large; faults are counted."""
        data = await request.body()
        content_type = request.headers.get("content-type", "")
        check = partial(schemas.check_counts, limits=self._limits)
        try:
            return await self._scorer.off_loop(
                len(data), parse_body, kind, data, content_type, check
            )
        except InvalidRequest:
            with self._calls.track(_METHODS[request.url.path], None):
                raise

    def _track(
        self, method: str, body: schemas.ScoreBody | schemas.RankBody
    ) -> AbstractContextManager[ScoringCall]:
        deadline = None if body.timeout is None else time.monotonic() + body.timeout
        return self._calls.track(method, deadline)


def _score_reply(items: Sequence[ScoreItem], scored: Scored, call: ScoringCall) -> Response:
    replies = [
        schemas.ItemReply(id=item.id, scores=[schemas.score_reply(s, scored.info) for s in scores])
        for item, scores in zip(items, scored.items, strict=True)
    ]
    return _reply(
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
    return _reply(
        schemas.RankBodyReply(
            ranking=ranking,
            info=schemas.info_reply(scored),
            timing=schemas.timing_reply(scored, call.elapsed()),
        )
    )


def _reply(body: BaseModel) -> Response:
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
