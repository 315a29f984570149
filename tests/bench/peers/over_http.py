"""Contenders that speak HTTP: POST /score takes a call as JSON and answers with its scores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict

import aiohttp
from tests.bench.peers.calls import Call
from tests.bench.peers.contender import Ask, Failed, Server


class HTTPServer(Server):
    """A contender behind HTTP."""

    def connect(self) -> AbstractAsyncContextManager[Ask]:
        """A client with as many connections as it needs."""
        return _connected(f"http://127.0.0.1:{self.port}/score")


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Ask]:
    limits = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=limits) as session:

        async def ask(
            call: Call, *, deadline: float | None = None, online: bool = True
        ) -> list[float]:
            body = {**asdict(call), "priority": 0 if online else 1}
            timeout = aiohttp.ClientTimeout(total=deadline)
            try:
                async with session.post(url, json=body, timeout=timeout) as reply:
                    if reply.status != 200:
                        raise Failed(f"status {reply.status}: {(await reply.text())[:200]}")
                    scores: list[float] = (await reply.json())["scores"]
                    return scores
            except (TimeoutError, aiohttp.ClientError) as error:
                raise Failed(f"no answer: {error!r}") from error

        yield ask
