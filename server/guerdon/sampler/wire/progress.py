"""Completions as they end and, in between, how many tokens the others have by then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from guerdon.sampler.sampling import Drawn, Sampler
from guerdon.sampler.types import GenerateRequest, Piece
from guerdon.sampler.wire import convert
from guerdon.serving.calls import Call
from guerdon.serving.prompts import TokenArray
from guerdon.together import together

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
