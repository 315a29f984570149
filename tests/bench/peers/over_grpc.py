"""This server's own client, one call at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.bench.peers.calls import Call
from tests.bench.peers.contender import Ask, Failed
from tests.support.load import ONCE

from guerdon.client import AsyncRewardClient, GuerdonError, Item, TokenIds

MODEL = "bench"


@asynccontextmanager
async def connected(address: str, computed: Callable[[int], None]) -> AsyncIterator[Ask]:
    """A client that doesn't retry, so that every refusal is seen; told the tokens computed."""
    async with AsyncRewardClient(address, retry=ONCE) as client:
        try:
            await client.get_model(MODEL)  # connected
        except GuerdonError as error:
            raise Failed(str(error)) from error

        async def ask(
            call: Call, *, deadline: float | None = None, online: bool = True
        ) -> list[float]:
            try:
                result = await client.score(
                    MODEL,
                    [as_item(call)],
                    timeout=deadline,
                    priority="online" if online else "batch",
                )
            except GuerdonError as error:
                raise Failed(str(error)) from error
            computed(sum(s.token_count - s.reused_tokens for s in result.items[0].scores))
            return result.scores[0]

        yield ask


def as_item(call: Call) -> Item:
    """The call, as this project's client asks it."""
    if call.tokens:
        return Item(TokenIds(call.prompt), [TokenIds(ids) for ids in call.responses])
    return Item(call.prompt, call.responses)
