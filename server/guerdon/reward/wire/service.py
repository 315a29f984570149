"""`RewardService` on the wire: messages in, messages out; what to compute is `Scorer`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from guerdon.reward.counting import ScoringCall, ScoringCalls
from guerdon.reward.models.registry import Registry
from guerdon.reward.request_limits import RequestLimits
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.types import PriorityClass, ScoreItem
from guerdon.reward.wire import convert
from guerdon.reward.wire.stream import ScoreStreamCall
from guerdon.serving.access.identity import Role
from guerdon.serving.wire.handlers import Context, M, call_deadline, decode
from guerdon.v1 import reward_pb2

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"]
ROLES: Mapping[str, Role | None] = {
    "Score": Role.SCORE,
    "Rank": Role.SCORE,
    "ScoreStream": Role.SCORE,
    "ListModels": None,
    "GetModel": None,
}
"""What a caller of each method needs; None: any known caller may."""


class RewardService:
    """Implements every RPC of `guerdon.v1.RewardService`."""

    def __init__(
        self,
        scorer: Scorer,
        registry: Registry,
        calls: ScoringCalls,
        limits: RequestLimits,
        *,
        stream_items: int,
    ) -> None:
        self._scorer = scorer
        self._registry = registry
        self._calls = calls
        self._limits = limits
        self._stream_items = stream_items

    async def Score(self, data: bytes, context: Context) -> reward_pb2.ScoreResponse:
        """Score items; one at fault fails the call."""
        with self._calls.serve("Score", call_deadline(context)) as call:
            request = await self._decode(reward_pb2.ScoreRequest, data)
            options = convert.options(request.options)
            call.asks(request.model, options.priority)
            items = await self._scorer.off_loop(len(data), convert.items, request, self._limits)
            scored = await self._scorer.score(call, request.model, items, options)
            return await self._scorer.off_loop(
                scored.reply_size, score_response, items, scored, call
            )

    async def Rank(self, data: bytes, context: Context) -> reward_pb2.RankResponse:
        """Order candidates, best first; ties stay in the order of the request."""
        with self._calls.serve("Rank", call_deadline(context)) as call:
            request = await self._decode(reward_pb2.RankRequest, data)
            options = convert.options(request.options)
            call.asks(request.model, options.priority)
            item = await self._scorer.off_loop(len(data), convert.candidates, request, self._limits)
            scored = await self._scorer.rank(call, request.model, item, options)
            return await self._scorer.off_loop(
                scored.reply_size, rank_response, scored, request.top_n, call
            )

    async def ScoreStream(self, context: Context) -> None:
        """Score items as they come; one at fault fails alone."""
        stream = ScoreStreamCall(
            context,
            self._scorer,
            self._calls,
            self._limits,
            deadline=call_deadline(context),
            items_in_flight=self._stream_items,
        )
        await stream.run()

    async def _decode(self, kind: type[M], data: bytes) -> M:
        """Parse a message, in a thread if it is large."""
        return await self._scorer.off_loop(len(data), decode, kind, data)

    async def ListModels(self, data: bytes, context: Context) -> reward_pb2.ListModelsResponse:
        """Every loaded revision."""
        with self._calls.serve("ListModels", call_deadline(context)):
            decode(reward_pb2.ListModelsRequest, data)
            return reward_pb2.ListModelsResponse(
                models=[
                    convert.model_info(r.info, current=r.current, aliases=aliases)
                    for r, aliases in self._registry.infos()
                ]
            )

    async def GetModel(self, data: bytes, context: Context) -> reward_pb2.GetModelResponse:
        """One loaded revision."""
        with self._calls.serve("GetModel", call_deadline(context)) as call:
            request = decode(reward_pb2.GetModelRequest, data)
            call.asks(request.model, PriorityClass.ONLINE)
            revision = self._registry.resolve(request.model)
            aliases = self._registry.aliases(revision.info.name)
            return reward_pb2.GetModelResponse(
                model=convert.model_info(revision.info, current=revision.current, aliases=aliases)
            )


def score_response(
    items: Sequence[ScoreItem], scored: Scored, call: ScoringCall
) -> reward_pb2.ScoreResponse:
    """The scores of a call's items."""
    return reward_pb2.ScoreResponse(
        items=convert.item_scores(items, scored),
        info=convert.scoring_info(scored),
        timing=convert.timing(scored, call.elapsed()),
    )


def rank_response(scored: Scored, top_n: int, call: ScoringCall) -> reward_pb2.RankResponse:
    """The ordering of a scored item's responses."""
    scores = scored.items[0]
    return reward_pb2.RankResponse(
        ranking=[
            reward_pb2.RankedCandidate(
                index=i, score=convert.response_score(scores[i], scored.info)
            )
            for i in scored.ranking(top_n)
        ],
        info=convert.scoring_info(scored),
        timing=convert.timing(scored, call.elapsed()),
    )
