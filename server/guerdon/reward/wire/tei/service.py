"""The services of `tei.v1`: Info, Predict and Rerank."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import grpc

from guerdon.reward.counting import ScoringCall, ScoringCalls
from guerdon.reward.request_limits import FormatSettings
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.wire.formats.format import Format, count_tokens
from guerdon.reward.wire.formats.scoring import FormatScorer
from guerdon.reward.wire.formats.tei import Predict, PredictBody, TEIRerank, TEIRerankBody
from guerdon.reward.wire.formats.tei_info import TEIInfo, TEILimits
from guerdon.reward.wire.stream import OrderedStream
from guerdon.reward.wire.tei.v1 import tei_pb2
from guerdon.serving.access.identity import Role
from guerdon.serving.errors import InvalidRequest, Unavailable
from guerdon.serving.wire.handlers import Context, M, call_deadline, decode, read

SERVICES = tuple(tei_pb2.DESCRIPTOR.services_by_name.values())
ROLES: Mapping[str, Role | None] = {
    "Info": None,
    "Predict": Role.SCORE,
    "PredictPair": Role.SCORE,
    "PredictStream": Role.SCORE,
    "PredictPairStream": Role.SCORE,
    "Rerank": Role.SCORE,
    "RerankStream": Role.SCORE,
}
"""What a caller of each method of any of the services needs; None: any known caller may."""

PredictRequest = tei_pb2.PredictRequest | tei_pb2.PredictPairRequest
Request = PredictRequest | tei_pb2.RerankRequest


class TEIService:
    """Implements every RPC of the services."""

    def __init__(
        self,
        scorer: Scorer,
        calls: ScoringCalls,
        format_scorer: FormatScorer,
        settings: FormatSettings,
        info: TEIInfo,
        limits: TEILimits,
    ) -> None:
        self._scorer = scorer
        self._info = info
        self._calls = calls
        self._format_scorer = format_scorer
        self._limits = limits
        self._predict_format = Predict(settings)
        self._rerank_format = TEIRerank(settings)

    async def Info(self, data: bytes, context: Context) -> tei_pb2.InfoResponse:
        """The model of requests, none of which can name one, and the server's limits."""
        with self._calls.serve("tei_Info", call_deadline(context)) as call:
            decode(tei_pb2.InfoRequest, data)
            fields = self._info.fields(self._info.model(call, ""))
            return tei_pb2.InfoResponse(model_type=tei_pb2.MODEL_TYPE_RERANKER, **fields)

    async def Predict(self, data: bytes, context: Context) -> tei_pb2.PredictResponse:
        """Score one text."""
        deadline = call_deadline(context)
        return await self._predict("tei_Predict", tei_pb2.PredictRequest, deadline, data)

    async def PredictPair(self, data: bytes, context: Context) -> tei_pb2.PredictResponse:
        """Score a prompt and its response, or one text."""
        deadline = call_deadline(context)
        return await self._predict("tei_PredictPair", tei_pb2.PredictPairRequest, deadline, data)

    async def PredictStream(self, context: Context) -> None:
        """Predict for each request, in order."""
        await self._predict_each("tei_PredictStream", tei_pb2.PredictRequest, context)

    async def PredictPairStream(self, context: Context) -> None:
        """PredictPair for each request, in order."""
        await self._predict_each("tei_PredictPairStream", tei_pb2.PredictPairRequest, context)

    async def Rerank(self, data: bytes, context: Context) -> tei_pb2.RerankResponse:
        """Order the texts of a query, best first."""
        with self._calls.serve("tei_Rerank", call_deadline(context)) as call:
            return await self._rerank(call, await self._decode(tei_pb2.RerankRequest, data))

    async def RerankStream(self, context: Context) -> tei_pb2.RerankResponse:
        """Order the texts that a stream brings one by one, once it ends."""
        with self._calls.serve("tei_RerankStream", call_deadline(context)) as call:
            return await self._rerank(call, await self._collect(context))

    async def _decode(self, kind: type[M], data: bytes) -> M:
        """Parse a message, in a thread if it is large."""
        return await self._scorer.off_loop(len(data), decode, kind, data)

    async def _predict_each(
        self, method: str, kind: type[PredictRequest], context: Context
    ) -> None:
        answer = partial(self._predict, method, kind, call_deadline(context))
        lifecycle, in_flight = self._calls.lifecycle, self._limits.stream_items
        await OrderedStream(context, lifecycle, answer, in_flight=in_flight).run()

    async def _predict(
        self, method: str, kind: type[PredictRequest], deadline: float | None, data: bytes
    ) -> tei_pb2.PredictResponse:
        with self._calls.serve(method, deadline) as call:
            request = await self._decode(kind, data)
            texts = [request.inputs] if isinstance(request.inputs, str) else [*request.inputs]
            body = PredictBody(inputs=texts, **_common(request))
            scored = await self._score(call, self._predict_format, body)
            return tei_pb2.PredictResponse(
                predictions=self._predict_format.reply(body, scored),
                metadata=_metadata(sum(map(len, texts)), scored, call),
            )

    async def _rerank(
        self, call: ScoringCall, request: tei_pb2.RerankRequest
    ) -> tei_pb2.RerankResponse:
        texts = list(request.texts)
        self._format_scorer.check_count("texts", len(texts))
        body = TEIRerankBody(
            query=request.query, texts=texts, return_text=request.return_text, **_common(request)
        )
        scored = await self._score(call, self._rerank_format, body)
        characters = sum(len(request.query) + len(text) for text in texts)
        return tei_pb2.RerankResponse(
            ranks=self._rerank_format.reply(body, scored),
            metadata=_metadata(characters, scored, call),
        )

    async def _score(self, call: ScoringCall, format_: Format[Any], body: Any) -> Scored:
        """Score what a body asks for; errors have the names of its fields."""
        try:
            asked = format_.ask(body)
            self._format_scorer.check(asked)
            return await self._format_scorer.score(call, format_, asked, asked.model)
        except InvalidRequest as error:
            raise format_.renamed(error) from error

    async def _collect(self, context: Context) -> tei_pb2.RerankRequest:
        """The requests of a stream as one.

        Raises:
            InvalidRequest: they are too many, too large, or of different queries.
            Unavailable: the server drains before the stream's end.
        """
        whole, size = tei_pb2.RerankRequest(), 0
        draining = asyncio.create_task(self._calls.lifecycle.wait_draining())
        try:
            while (data := await read(context, draining)) is not grpc.aio.EOF:
                if data is None:
                    raise Unavailable("the server is draining, and the stream has not ended")
                size += len(cast(bytes, data))
                if size > self._limits.max_message_bytes:
                    most = self._limits.max_message_bytes
                    raise InvalidRequest("text", f"the stream holds more than {most} bytes")
                _add(whole, await self._decode(tei_pb2.RerankStreamRequest, cast(bytes, data)))
                self._format_scorer.check_count("texts", len(whole.texts))
        finally:
            draining.cancel()
        return whole


def _add(whole: tei_pb2.RerankRequest, request: tei_pb2.RerankStreamRequest) -> None:
    """Add the text of a stream's request to those before it."""
    shared = ("query", "truncate", "truncation_direction")
    first = not whole.texts
    for name in (*shared, "raw_scores", "return_text") if first else ():
        setattr(whole, name, getattr(request, name))
    for name in shared:
        if getattr(request, name) != getattr(whole, name):
            raise InvalidRequest(name, "must be the same in each request of a stream")
    whole.texts.append(request.text)


def _common(request: Request) -> dict[str, Any]:
    """The fields that the bodies of all formats have."""
    left = request.truncation_direction == tei_pb2.TRUNCATION_DIRECTION_LEFT
    return {
        "truncate": request.truncate,
        "truncation_direction": "Left" if left else "Right",
        "raw_scores": request.raw_scores,
    }


def _metadata(characters: int, scored: Scored, call: ScoringCall) -> tei_pb2.Metadata:
    return tei_pb2.Metadata(
        compute_chars=characters,
        compute_tokens=count_tokens(scored),
        total_time_ns=int(call.elapsed() * 1e9),
        tokenization_time_ns=int(scored.tokenize_seconds * 1e9),
        queue_time_ns=int(scored.queue_seconds * 1e9),
        inference_time_ns=int(scored.compute_seconds * 1e9),
    )
