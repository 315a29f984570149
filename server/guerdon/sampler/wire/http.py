"""The HTTP twins of `Generate` (one reply, no stream) and `GetPolicy`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel

from guerdon.sampler.sampling import Drawn, Sampling
from guerdon.sampler.standing import Standing
from guerdon.sampler.wire import schemas
from guerdon.sampler.wire.calls import Calls
from guerdon.serving.callers import Callers, Role
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http import error_response, needs, validation_error, while_connected
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.schemas import ERRORS

_EXAMPLE = {
    "items": [{"prompt": [{"role": "user", "content": "What is rain?"}], "n": 2}],
    "options": {"max_tokens": 64, "temperature": 0.8},
}


class PolicyRoutes:
    """Adds the policy's routes to an app."""

    def __init__(
        self,
        sampling: Sampling,
        standing: Standing,
        lifecycle: Lifecycle,
        calls: Calls,
        callers: Callers,
    ) -> None:
        self._sampling = sampling
        self._standing = standing
        self._lifecycle = lifecycle
        self._calls = calls
        self._callers = callers

    def add_to(self, app: FastAPI) -> None:
        """Add them, and count requests that are refused before a route sees them."""
        router = APIRouter(prefix="/v1", tags=["policy"])
        samples, known = needs(self._callers, Role.SAMPLE), needs(self._callers, None)
        router.add_api_route(
            "/generate", self.generate, methods=["POST"], response_model=schemas.GenerateReply,
            summary="Sample completions", responses=ERRORS, dependencies=[samples],
        )  # fmt: skip
        router.add_api_route(
            "/policy", self.policy, methods=["GET"], response_model=schemas.PolicyReply,
            summary="The policy and the load",
            responses={code: ERRORS[code] for code in (401, 503)}, dependencies=[known],
        )  # fmt: skip
        app.include_router(router)
        app.add_exception_handler(RequestValidationError, self._on_invalid)

    async def generate(
        self, request: Request, body: Annotated[schemas.GenerateBody, Body(examples=[_EXAMPLE])]
    ) -> Response:
        """All or nothing; leaving stops the drawing."""
        deadline = None if body.timeout is None else time.monotonic() + body.timeout
        with self._calls.track("http_generate", deadline) as call, self._lifecycle.admit():
            replies: list[schemas.CompletionReply] = []

            async def keep(drawn: Drawn) -> None:
                replies.append(schemas.completion_reply(drawn, text=body.return_text))

            await while_connected(request, self._sampling.draw(call, body.to_work(), keep))
            replies.sort(key=lambda reply: (reply.item, reply.sample))
            return _reply(schemas.GenerateReply(completions=replies))

    async def policy(self) -> Response:
        """As `GetPolicy`."""
        with self._calls.track("http_policy", None), self._lifecycle.admit():
            return _reply(schemas.policy_reply(self._standing.now()))

    async def _on_invalid(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fault = validation_error(error)
        if request.url.path == "/v1/generate":
            with suppress(InvalidRequest), self._calls.track("http_generate", None):
                raise fault
        return error_response(fault)


def _reply(body: BaseModel) -> Response:
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
