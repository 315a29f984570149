"""The HTTP twins of `Generate` (one reply, no stream) and `GetPolicy`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from guerdon.sampler.call_metrics import CallMetrics
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn, Sampler
from guerdon.sampler.status import StatusReader
from guerdon.sampler.wire import schemas
from guerdon.serving.access.identity import Role
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.app import while_connected
from guerdon.serving.http.bodies import body_route, parse_body
from guerdon.serving.http.schemas import ERRORS
from guerdon.serving.process.lifecycle import Lifecycle

_EXAMPLE = {
    "items": [{"prompt": [{"role": "user", "content": "What is rain?"}], "n": 2}],
    "options": {"max_tokens": 64, "temperature": 0.8},
}


ROLES: Mapping[str, Role | None] = {"/v1/generate": Role.SAMPLE, "/v1/policy": None}
"""What a caller of each path needs; None: any known caller may."""


class PolicyRoutes:
    """Adds the policy's routes to an app."""

    def __init__(
        self,
        sampler: Sampler,
        status: StatusReader,
        lifecycle: Lifecycle,
        calls: CallMetrics,
        limits: RequestLimits,
    ) -> None:
        self._sampler = sampler
        self._status = status
        self._lifecycle = lifecycle
        self._calls = calls
        self._limits = limits

    def add_to(self, app: FastAPI) -> None:
        """Add the routes of `/v1`."""
        router = APIRouter(prefix="/v1", tags=["policy"], route_class=body_route(self._parse))
        router.add_api_route(
            "/generate",
            self.generate,
            methods=["POST"],
            response_model=schemas.GenerateReply,
            summary="Sample completions",
            responses=ERRORS,
        )
        router.add_api_route(
            "/policy",
            self.policy,
            methods=["GET"],
            response_model=schemas.PolicyReply,
            summary="The policy and the load",
            responses={code: ERRORS[code] for code in (401, 503)},
        )
        app.include_router(router)

    async def generate(
        self, request: Request, body: Annotated[schemas.GenerateBody, Body(examples=[_EXAMPLE])]
    ) -> Response:
        """All or nothing; leaving stops the drawing."""
        deadline = None if body.timeout is None else time.monotonic() + body.timeout
        with self._calls.track("http_generate", deadline) as call, self._lifecycle.admit():
            replies: list[schemas.CompletionReply] = []

            async def keep(drawn: Drawn) -> None:
                replies.append(schemas.completion_reply(drawn, text=body.return_text))

            asked = await self._sampler.off_loop(len(await request.body()), body.to_request)
            await while_connected(request, self._sampler.draw(call, asked, keep))
            replies.sort(key=lambda reply: (reply.item, reply.sample))
            return _reply(schemas.GenerateReply(completions=replies))

    async def _parse(self, request: Request, kind: type[BaseModel]) -> BaseModel:
        """The body of a request, parsed in a thread if it is large; faults are counted."""
        data = await request.body()
        content_type = request.headers.get("content-type", "")
        check = partial(schemas.check_counts, limits=self._limits)
        try:
            return await self._sampler.off_loop(
                len(data), parse_body, kind, data, content_type, check
            )
        except InvalidRequest:
            with self._calls.track("http_generate", None):
                raise

    async def policy(self) -> Response:
        """Answer like `GetPolicy`."""
        with self._calls.track("http_policy", None), self._lifecycle.admit():
            return _reply(schemas.policy_reply(self._status.read()))


def _reply(body: BaseModel) -> Response:
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
