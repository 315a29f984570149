"""The synchronous clients: the asynchronous ones, run on a private event loop.

They work wherever blocking is allowed, also where another loop is running (Jupyter). The loop is
one for all of the process: gRPC's asyncio side polls once for the whole process, and clients on
many loops wake each other for nothing.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, ClassVar, Self, TypeVar, Unpack

from guerdon.client._connection import UNSET, Unset
from guerdon.client._update_steps import Source
from guerdon.client.admin import AsyncAdminClient
from guerdon.client.aio import MAX_IN_FLIGHT, AsyncClient, AsyncRewardClient
from guerdon.client.config import ConnectionOptions, Limits, ScoringOptions, check_number
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Completion, GenerateItem, PolicyInfo, WeightUpdate
from guerdon.client.types import (
    Item,
    ItemScores,
    ModelInfo,
    Promotion,
    Prompt,
    RankResult,
    Response,
    ScoreResult,
    StreamResult,
)

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _after_fork_in_child() -> None:
    """The thread is not here, and another one may have held the lock."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop, started when it is first needed; a forked child gets its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="guerdon-client", daemon=True).start()
        return _loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result; an interrupt (Ctrl-C) cancels it first.

    Raises:
        RuntimeError: called on the loop's own thread, where waiting would be for ever.
    """
    loop = background_loop()
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coroutine.close()
        raise RuntimeError("a synchronous client cannot be used inside an asynchronous one")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        if future.cancel():
            with suppress(CancelledError, Exception):
                future.result()
        raise


class _SyncClient:
    """Opening and closing."""

    _kind: ClassVar[type[AsyncClient]]
    _client: AsyncClient

    def __init__(self, target: str | Sequence[str], **options: Unpack[ConnectionOptions]) -> None:
        self._client = self._kind(target, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        run(self._client.close())

    def health(self, service: str = "", *, timeout: float | Unset | None = UNSET) -> bool:
        """See `AsyncClient.health`."""
        return run(self._client.health(service, timeout=timeout))


class RewardClient(_SyncClient):
    """Scores responses with the reward models of one or several servers.

        with RewardClient("localhost:50051") as rewards:
            print(rewards.score("helpful", [Item("What is rain?", ["Water.", "Mud."])]).scores)

    Everything is as in `AsyncRewardClient`, without the awaiting. Safe to use from many threads
    at once.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._client: AsyncRewardClient = AsyncRewardClient(target, limits=limits, **options)

    def score(
        self, model: str, items: Sequence[Item], **options: Unpack[ScoringOptions]
    ) -> ScoreResult:
        """See `AsyncRewardClient.score`."""
        return run(self._client.score(model, items, **options))

    def score_one(
        self,
        model: str,
        prompt: Prompt,
        responses: Sequence[Response],
        **options: Unpack[ScoringOptions],
    ) -> ItemScores:
        """See `AsyncRewardClient.score_one`."""
        return run(self._client.score_one(model, prompt, responses, **options))

    def score_stream(
        self,
        model: str,
        items: Iterable[Item],
        *,
        in_flight: int = 64,
        **options: Unpack[ScoringOptions],
    ) -> Iterator[StreamResult]:
        """See `AsyncRewardClient.score_stream`.

        The items are read in the caller's own thread, as the results are: an iterable may
        block, or use this client.
        """
        check_number("in_flight", in_flight, 1, MAX_IN_FLIGHT, whole=True)
        source: asyncio.Queue[Item | None] = asyncio.Queue()
        results: queue.SimpleQueue[StreamResult | BaseException | None] = queue.SimpleQueue()

        async def taken() -> AsyncIterator[Item]:
            while (item := await source.get()) is not None:
                yield item

        async def pump() -> None:
            stream = self._client.score_stream(model, taken(), in_flight=in_flight, **options)
            try:
                async for result in stream:
                    results.put(result)
                results.put(None)
            except Exception as error:
                results.put(error)
            finally:
                await stream.aclose()

        loop = background_loop()
        pumping = asyncio.run_coroutine_threadsafe(pump(), loop)
        waiting = 0
        try:
            for item in items:
                loop.call_soon_threadsafe(source.put_nowait, item)
                waiting += 1
                while waiting >= in_flight or (waiting and not results.empty()):
                    yield _next(results)
                    waiting -= 1
            loop.call_soon_threadsafe(source.put_nowait, None)
            for _ in range(waiting):
                yield _next(results)
        finally:
            pumping.cancel()

    def rank(
        self,
        model: str,
        prompt: Prompt,
        candidates: Sequence[Response],
        *,
        top_n: int | None = None,
        **options: Unpack[ScoringOptions],
    ) -> RankResult:
        """See `AsyncRewardClient.rank`."""
        return run(self._client.rank(model, prompt, candidates, top_n=top_n, **options))

    def list_models(self, *, timeout: float | Unset | None = UNSET) -> list[ModelInfo]:
        """See `AsyncRewardClient.list_models`."""
        return run(self._client.list_models(timeout=timeout))

    def get_model(self, name: str, *, timeout: float | Unset | None = UNSET) -> ModelInfo:
        """See `AsyncRewardClient.get_model`."""
        return run(self._client.get_model(name, timeout=timeout))


def _next(results: queue.SimpleQueue[StreamResult | BaseException | None]) -> StreamResult:
    result = results.get()
    if isinstance(result, BaseException):
        raise result
    assert result is not None, "the stream ended before every item was answered"
    return result


class PolicyClient(_SyncClient):
    """Draws completions from a policy sampler, and gives it new weights.

    Everything is as in `AsyncPolicyClient`, without the awaiting.
    """

    _kind = AsyncPolicyClient
    _client: AsyncPolicyClient

    def generate(self, items: Sequence[GenerateItem], **options: Any) -> list[Completion]:
        """All completions, by item and sample; see `AsyncPolicyClient.generate`.

        `on_progress` is called in another thread, in which all clients work.
        """

        async def collect() -> list[Completion]:
            return [completion async for completion in self._client.generate(items, **options)]

        return sorted(run(collect()), key=lambda found: (found.item, found.sample))

    def update_weights(self, version: int, source: Source, **options: Any) -> WeightUpdate:
        """See `AsyncPolicyClient.update_weights`."""
        return run(self._client.update_weights(version, source, **options))

    def get_policy(self, *, timeout: float | Unset | None = UNSET) -> PolicyInfo:
        """See `AsyncPolicyClient.get_policy`."""
        return run(self._client.get_policy(timeout=timeout))


class AdminClient(_SyncClient):
    """Loads, names and swaps models on a running server; see `AsyncAdminClient`."""

    _kind = AsyncAdminClient
    _client: AsyncAdminClient

    def load_model(
        self, name: str, path: str, *, promote: bool = False, timeout: float | Unset | None = UNSET
    ) -> ModelInfo:
        """See `AsyncAdminClient.load_model`."""
        return run(self._client.load_model(name, path, promote=promote, timeout=timeout))

    def unload_model(
        self, name: str, revision: str = "", *, timeout: float | Unset | None = UNSET
    ) -> list[str]:
        """See `AsyncAdminClient.unload_model`."""
        return run(self._client.unload_model(name, revision, timeout=timeout))

    def set_alias(self, alias: str, name: str, *, timeout: float | Unset | None = UNSET) -> None:
        """See `AsyncAdminClient.set_alias`."""
        run(self._client.set_alias(alias, name, timeout=timeout))

    def delete_alias(self, alias: str, *, timeout: float | Unset | None = UNSET) -> None:
        """See `AsyncAdminClient.delete_alias`."""
        run(self._client.delete_alias(alias, timeout=timeout))

    def promote_model(
        self,
        name: str,
        revision: str,
        *,
        unload_previous: bool = False,
        timeout: float | Unset | None = UNSET,
    ) -> Promotion:
        """See `AsyncAdminClient.promote_model`."""
        promotion = self._client.promote_model(
            name, revision, unload_previous=unload_previous, timeout=timeout
        )
        return run(promotion)
