"""Rows ranked by a model that compares answers and has no score for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Unpack

from guerdon.client import GuerdonError, StreamResult
from guerdon.together import cancel

if TYPE_CHECKING:
    from guerdon.client import AsyncRewardClient, Item, ScoringOptions

MOST_IN_FLIGHT = 8
"""A row of n answers is n·(n − 1) comparisons: a few rows fill the server's batches."""


async def rank_stream(
    client: AsyncRewardClient,
    model: str,
    items: AsyncGenerator[Item, None],
    *,
    in_flight: int,
    **options: Unpack[ScoringOptions],
) -> AsyncGenerator[StreamResult, None]:
    """What `score_stream` gives, by a Rank call for each item.

    Args:
        client: open.
        model: a name, an alias, or `name@revision`.
        items: read as there is room.
        in_flight: most items asked for at a time.
        options: see `ScoringOptions`.
    """
    room = asyncio.Semaphore(min(in_flight, MOST_IN_FLIGHT))
    done: asyncio.Queue[StreamResult | None] = asyncio.Queue()

    async def ask(index: int, item: Item) -> None:
        try:
            found = await client.rank(model, item.prompt, item.responses, **options)
        except GuerdonError as error:
            result = StreamResult(index=index, id=item.id, error=error)
        else:
            by_place = sorted(found.ranking, key=lambda candidate: candidate.index)
            result = StreamResult(
                index=index,
                id=item.id,
                scores=tuple(candidate.score for candidate in by_place),
                info=found.info,
                timing=found.timing,
            )
        done.put_nowait(result)

    async def ask_all() -> None:
        async with asyncio.TaskGroup() as calls, aclosing(items):
            index = 0
            async for item in _as_room(items, room):
                calls.create_task(ask(index, item))
                index += 1

    asking = asyncio.create_task(ask_all())
    asking.add_done_callback(lambda _: done.put_nowait(None))
    try:
        while (result := await done.get()) is not None:
            room.release()
            yield result
        await asking
    finally:
        await cancel([asking])


async def _as_room(
    items: AsyncGenerator[Item, None], room: asyncio.Semaphore
) -> AsyncIterator[Item]:
    while True:
        await room.acquire()
        try:
            yield await anext(items)
        except StopAsyncIteration:
            return
