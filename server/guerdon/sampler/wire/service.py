"""`PolicyService` on the wire: messages in, messages out; what to draw is `Sampler`'s."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn, Sampler
from guerdon.sampler.types import GenerateRequest
from guerdon.sampler.wire import convert
from guerdon.sampler.wire.progress import draw_and_tell
from guerdon.sampler.wire.status import StatusReader
from guerdon.sampler.wire.updates import Updates
from guerdon.serving.access.identity import Role
from guerdon.serving.calls import CountedCalls
from guerdon.serving.wire.handlers import Context, call_deadline, decode, send
from guerdon.v1 import policy_pb2

SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]
ROLES: Mapping[str, Role | None] = {
    "Generate": Role.SAMPLE,
    "UpdateWeights": Role.WEIGHTS,
    "GetPolicy": None,
}
"""What a caller of each method needs; None: any known caller may."""


class PolicyService:
    """Implements every RPC of `guerdon.v1.PolicyService`."""

    def __init__(
        self,
        sampler: Sampler,
        updates: Updates,
        status: StatusReader,
        calls: CountedCalls,
        limits: RequestLimits,
    ) -> None:
        self._sampler = sampler
        self._updates = updates
        self._status = status
        self._calls = calls
        self._limits = limits

    async def Generate(self, data: bytes, context: Context) -> None:
        """Write each completion as it ends; returning says that all have come."""

        async def write(drawn: Drawn) -> None:
            await send(context, convert.response(drawn))

        with self._calls.serve("Generate", call_deadline(context)) as call:
            request = await self._sampler.off_loop(len(data), self._read, data)
            if request.report_progress:
                await draw_and_tell(self._sampler, call, request, partial(send, context))
            else:
                await self._sampler.draw(call, request, write)

    def _read(self, data: bytes) -> GenerateRequest:
        return convert.generate_request(decode(policy_pb2.GenerateRequest, data), self._limits)

    async def UpdateWeights(self, context: Context) -> policy_pb2.UpdateWeightsResponse:
        """Take new weights; returning says that they serve."""
        deadline = call_deadline(context)
        with self._calls.serve("UpdateWeights", deadline) as call:
            return await self._updates.take(context, call)

    async def GetPolicy(self, data: bytes, context: Context) -> policy_pb2.GetPolicyResponse:
        """What is served, and the load."""
        with self._calls.serve("GetPolicy", call_deadline(context)):
            decode(policy_pb2.GetPolicyRequest, data)
            return self._status.read()
