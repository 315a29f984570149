"""The HTTP twins of `Generate` (one reply, no stream) and `GetPolicy`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import Body, Request
from fastapi.responses import Response

from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn, Sampler
from guerdon.sampler.wire import schemas
from guerdon.sampler.wire.convert import StatusReader
from guerdon.serving.access.identity import Role
from guerdon.serving.calls import Call, CountedCalls
from guerdon.serving.http.routes import Routes, json_reply, while_connected

_EXAMPLE = {
    "items": [{"prompt": [{"role": "user", "content": "What is rain?"}], "n": 2}],
    "options": {"max_tokens": 64, "temperature": 0.8},
}
ROLES: Mapping[str, Role | None] = {"/v1/generate": Role.SAMPLE, "/v1/policy": None}
"""What a caller of each path needs; None: any known caller may."""


class PolicyRoutes(Routes[Call]):
    """The sampler's routes."""

    def __init__(
        self, sampler: Sampler, status: StatusReader, calls: CountedCalls, limits: RequestLimits
    ) -> None:
        super().__init__("policy", calls, sampler, partial(schemas.check_counts, limits=limits))
        self._sampler = sampler
        self._status = status
        self.post(self.generate, schemas.GenerateReply, "Sample completions")
        self.get(self.policy, schemas.PolicyReply, "The policy and the load")

    async def generate(
        self, request: Request, body: Annotated[schemas.GenerateBody, Body(examples=[_EXAMPLE])]
    ) -> Response:
        """All or nothing; leaving stops the drawing."""
        with self.serve(request, body.timeout) as call:
            replies: list[schemas.CompletionReply] = []

            async def keep(drawn: Drawn) -> None:
                replies.append(schemas.completion_reply(drawn, text=body.return_text))

            asked = await self._sampler.off_loop(len(await request.body()), body.to_request)
            await while_connected(request, self._sampler.draw(call, asked, keep))
            replies.sort(key=lambda reply: (reply.item, reply.sample))
            return json_reply(schemas.GenerateReply(completions=replies))

    async def policy(self, request: Request) -> Response:
        """Answer like `GetPolicy`."""
        with self.serve(request):
            return json_reply(schemas.policy_reply(self._status.read()))
