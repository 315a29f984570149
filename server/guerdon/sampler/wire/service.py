"""`PolicyService` on the wire: messages in, messages out; what to draw is `Sampler`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from google.protobuf.message import Message

from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn, Sampler
from guerdon.sampler.types import GenerateRequest, Piece
from guerdon.sampler.wire import convert
from guerdon.sampler.wire.convert import StatusReader
from guerdon.sampler.wire.updates import Updates
from guerdon.serving.access.identity import Role
from guerdon.serving.calls import Call, CountedCalls
from guerdon.serving.prompts import TokenArray
from guerdon.serving.wire.handlers import Context, call_deadline, decode, send
from guerdon.together import together
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


Send = Callable[[Message], Awaitable[None]]


async def draw_and_tell(sampler: Sampler, call: Call, request: GenerateRequest, send: Send) -> None:
    """Draw what is asked for, and send completions and progress; as `Sampler.draw`.

    Args:
        send: writes a reply, and returns when there is room for the next.
    """
    telling = _Telling(request, send)

    async def draw() -> None:
        await sampler.draw(call, request, telling.hand_over, telling.grown, telling.begun)
        telling.end()

    await together([draw(), telling.tell()])


class _Telling:
    """The replies of one call.

    Of each completion only the latest count waits to be sent, so a reader who is slow gets fewer
    messages, and makes nobody's memory grow.
    """

    def __init__(self, request: GenerateRequest, send: Send) -> None:
        self._request = request
        self._send = send
        self._one_at_a_time = asyncio.Lock()
        self._tokens: dict[tuple[int, int], int] = {}
        """Drawn so far of each completion, by item and sample."""
        self._untold: set[tuple[int, int]] = set()
        """Completions whose count is to be sent."""
        self._changed = asyncio.Event()
        self._ended = False

    def begun(self) -> None:
        """Tell that there are 0 tokens of each: the request is accepted."""
        items = enumerate(self._request.items)
        self._tokens = {(place, sample): 0 for place, item in items for sample in range(item.n)}
        self._untold = set(self._tokens)
        self._changed.set()

    def grown(self, item: int, _prompt: TokenArray, piece: Piece) -> None:
        """Count a piece."""
        self._tokens[item, piece.index] += len(piece.token_ids)
        self._untold.add((item, piece.index))
        self._changed.set()

    async def hand_over(self, drawn: Drawn) -> None:
        """Send a completion, after which its count is no news."""
        self._untold.discard((drawn.item, drawn.completion.index))
        async with self._one_at_a_time:
            await self._send(convert.response(drawn))

    async def tell(self) -> None:
        """Send the counts that have changed, until the end."""
        while not self._ended:
            await self._changed.wait()
            async with self._one_at_a_time:
                self._changed.clear()
                told = {each: self._tokens[each] for each in sorted(self._untold)}
                self._untold.clear()
                if told:
                    await self._send(convert.progress(told))

    def end(self) -> None:
        """All completions were sent."""
        self._ended = True
        self._changed.set()
