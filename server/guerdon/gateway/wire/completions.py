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
from guerdon.gateway.asked import PlanLimits, new_plan
from guerdon.gateway.passing import Passed, PassThrough
from guerdon.gateway.strategies.work import Work
from guerdon.gateway.types import Plan, PolicyRequest
from guerdon.gateway.wire import answers
from guerdon.gateway.wire.asking import HEADER, Names, asked
from guerdon.gateway.wire.bodies import (
    GatewayBody,
    PassedChat,
    RankedChat,
    RankedText,
    read_policy_request,
    read_request,
)
from guerdon.serving.calls import Call
from guerdon.serving.openai.events import comment, event
from guerdon.serving.openai.replies import CHAT, TEXT, AnswerShape, Envelope, Json, as_bytes
from guerdon.serving.openai.routes import Endpoint
from guerdon.together import cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How requests are read."""

    names: Names
    limits: PlanLimits
    max_tokens: int
    """Most tokens of a candidate where a request doesn't say."""
    comment_seconds: float
    """Longest silence of a stream."""


class CompletionsEndpoint(Endpoint[Call, GatewayBody]):
    """What both paths do."""

    shape: AnswerShape
    kind: type[RankedChat | RankedText]

    def __init__(self, answering: Answering, passing: PassThrough, reading: Reading) -> None:
        self._answering = answering
        self._passing = passing
        self._reading = reading
        self._neutral = reading.limits.resumes

    def read(self, value: dict[str, Any], request: Request) -> GatewayBody:
        """A body's JSON as its model, with what is asked for beside it."""
        found = asked(value, request.headers.get(HEADER), self._reading.names)
        return read_request(self.kind, value, found, neutral=self._neutral)

    async def answer(self, call: Call, body: GatewayBody) -> Response:
        """The whole answer."""
        if isinstance(body, PassedChat):
            reply = await self._passing.whole(call, self._passed(body))
            return _reply(reply, {answers.RANKED_HEADER: "false"})
        question, plan = self._asked(body)
        found = await self._answering.answer(call, question, plan)
        return _reply(answers.whole(self._envelope(body), found), answers.headers(found))

    async def stream(self, call: Call, body: GatewayBody) -> AsyncGenerator[bytes, None]:
        """Comments while candidates are drawn, then the answer as it stands."""
        if isinstance(body, PassedChat):
            passed = self._passing.events(call, self._passed(body))
            async with contextlib.aclosing(passed):
                async for piece in passed:
                    yield piece
            return
        question, plan = self._asked(body)
        envelope = self._envelope(body)
        changed = asyncio.Event()
        working: Work | None = None

        def progress(work: Work) -> None:
            nonlocal working
            working = work
            changed.set()

        finding = asyncio.ensure_future(
            self._answering.answer(call, question, plan, on_progress=progress)
        )
        finding.add_done_callback(lambda _: changed.set())
        try:
            while not finding.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._reading.comment_seconds):
                        await changed.wait()
                changed.clear()
                if not finding.done():
                    yield comment("drawing" if working is None else _so_far(working))
            found = finding.result()
        finally:
            await cancel([finding])
        for chunk in answers.chunks(
            envelope, found, include_usage=body.stream_options.include_usage
        ):
            yield event(chunk)

    def stream_headers(self, body: GatewayBody) -> Mapping[str, str]:
        """Whether it is passed on; what is ranked says so at its end."""
        return {answers.RANKED_HEADER: "false"} if isinstance(body, PassedChat) else {}

    def _asked(self, body: GatewayBody) -> tuple[PolicyRequest, Plan]:
        reading = self._reading
        plan = new_plan(body.asked, body.n, reading.limits)
        return read_policy_request(body, reading.max_tokens), plan

    def _envelope(self, body: GatewayBody) -> Envelope:
        return Envelope.new(self.shape, body.model or self._reading.names.name)

    def _passed(self, body: PassedChat) -> Passed:
        path = self.path.removeprefix("/v1")
        return Passed(path=path, value=body.value, why=body.why_passed, most=body.most)


class ChatEndpoint(CompletionsEndpoint):
    """Chats."""

    path = "/v1/chat/completions"
    summary = "The best of several answers to a conversation"
    shape, kind = CHAT, RankedChat


class TextEndpoint(CompletionsEndpoint):
    """Texts."""

    path = "/v1/completions"
    summary = "The best of several completions of a text"
    shape, kind = TEXT, RankedText


def _so_far(work: Work) -> str:
    """How far a call has come."""
    drawn = f"{len(work.drafts)} of {work.plan.best_of} drawn"
    return f"{drawn}, {work.scored} scored, {work.drawn} tokens"


def _reply(value: Json, headers: Mapping[str, str]) -> Response:
    return Response(as_bytes(value), headers=dict(headers), media_type="application/json")
