"""POST /v1/chat/completions and /v1/completions: the best of several answers, or passed on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from guerdon.gateway.answering import Answering
from guerdon.gateway.pass_through import PassedRequest, PassThrough
from guerdon.gateway.plans import PlanLimits, new_plan
from guerdon.gateway.strategies.work import Work
from guerdon.gateway.types import Plan, PolicyRequest
from guerdon.gateway.wire import answers
from guerdon.gateway.wire.bodies import (
    GatewayBody,
    PassedChat,
    RankedChat,
    RankedText,
    read_policy_request,
    read_request,
)
from guerdon.gateway.wire.partial_plans import HEADER, ModelNames, read_partial_plan
from guerdon.serving.calls import Call
from guerdon.serving.openai.events import comment, event
from guerdon.serving.openai.replies import CHAT, TEXT, AnswerShape, Envelope, Json, as_bytes
from guerdon.serving.openai.routes import Endpoint
from guerdon.together import cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDefaults:
    """What may be asked for, and what holds where a request doesn't say."""

    names: ModelNames
    limits: PlanLimits
    max_tokens: int
    """Most tokens of a candidate where a request doesn't say."""
    comment_seconds: float
    """Longest silence of a stream."""


class CompletionsEndpoint(Endpoint[Call, GatewayBody]):
    """What both paths do."""

    shape: AnswerShape
    kind: type[RankedChat | RankedText]

    def __init__(
        self, answering: Answering, pass_through: PassThrough, defaults: RequestDefaults
    ) -> None:
        self._answering = answering
        self._pass_through = pass_through
        self._defaults = defaults
        self._neutral = defaults.limits.resumes

    def read(self, value: dict[str, Any], request: Request) -> GatewayBody:
        """A body's JSON as its model, with what is asked for beside it."""
        partial = read_partial_plan(value, request.headers.get(HEADER), self._defaults.names)
        return read_request(self.kind, value, partial, neutral=self._neutral)

    async def answer(self, call: Call, body: GatewayBody) -> Response:
        """The whole answer."""
        if isinstance(body, PassedChat):
            reply = await self._pass_through.whole_answer(call, self._passed(body))
            return _reply(reply, {answers.RANKED_HEADER: "false"})
        request, plan = self._request_and_plan(body)
        choices = await self._answering.answer(call, request, plan)
        return _reply(answers.whole_answer(self._envelope(body), choices), answers.headers(choices))

    async def stream(self, call: Call, body: GatewayBody) -> AsyncGenerator[bytes, None]:
        """Comments while candidates are drawn, then the answer as it stands."""
        if isinstance(body, PassedChat):
            passed = self._pass_through.events(call, self._passed(body))
            async with contextlib.aclosing(passed):
                async for piece in passed:
                    yield piece
            return
        request, plan = self._request_and_plan(body)
        envelope = self._envelope(body)
        changed = asyncio.Event()
        working: Work | None = None

        def progress(work: Work) -> None:
            nonlocal working
            working = work
            changed.set()

        finding = asyncio.ensure_future(
            self._answering.answer(call, request, plan, on_progress=progress)
        )
        finding.add_done_callback(lambda _: changed.set())
        try:
            while not finding.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._defaults.comment_seconds):
                        await changed.wait()
                changed.clear()
                if not finding.done():
                    yield comment("drawing" if working is None else _so_far(working))
            choices = finding.result()
        finally:
            await cancel([finding])
        for chunk in answers.chunks(
            envelope, choices, include_usage=body.stream_options.include_usage
        ):
            yield event(chunk)

    def stream_headers(self, body: GatewayBody) -> Mapping[str, str]:
        """Whether it is passed on; what is ranked says so at its end."""
        return {answers.RANKED_HEADER: "false"} if isinstance(body, PassedChat) else {}

    def _request_and_plan(self, body: GatewayBody) -> tuple[PolicyRequest, Plan]:
        defaults = self._defaults
        plan = new_plan(body.partial_plan, body.n, defaults.limits)
        return read_policy_request(body, defaults.max_tokens), plan

    def _envelope(self, body: GatewayBody) -> Envelope:
        return Envelope.new(self.shape, body.model or self._defaults.names.name)

    def _passed(self, body: PassedChat) -> PassedRequest:
        path = self.path.removeprefix("/v1")
        return PassedRequest(path=path, value=body.value, why=body.why_passed, most=body.most)


class ChatEndpoint(CompletionsEndpoint):
    """The endpoint of chats."""

    path = "/v1/chat/completions"
    summary = "The best of several answers to a conversation"
    shape, kind = CHAT, RankedChat


class TextEndpoint(CompletionsEndpoint):
    """The endpoint of text completions."""

    path = "/v1/completions"
    summary = "The best of several completions of a text"
    shape, kind = TEXT, RankedText


def _so_far(work: Work) -> str:
    """How far a call has come."""
    drawn = f"{len(work.drafts)} of {work.plan.best_of} drawn"
    return f"{drawn}, {work.scored} scored, {work.drawn} tokens"


def _reply(value: Json, headers: Mapping[str, str]) -> Response:
    return Response(as_bytes(value), headers=dict(headers), media_type="application/json")
