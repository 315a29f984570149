"""The asynchronous client of the reward service."""

# ruff: noqa: ASYNC109 - the timeout is the RPC's deadline, which travels to the server
from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from typing import Any, Self, Unpack

from guerdon.client import _wire
from guerdon.client._channel import speaks_http
from guerdon.client._connection import UNSET, Connection, Unset
from guerdon.client._retry import Deadline
from guerdon.client._scoring import ScoreCall, check_model
from guerdon.client._stream import ScoreStream
from guerdon.client.config import (
    DEFAULT_TIMEOUT,
    MAX_REPLY_BYTES,
    TLS,
    Clock,
    ConnectionOptions,
    Limits,
    Retry,
    ScoringOptions,
    check_number,
)
from guerdon.client.types import (
    Item,
    ItemScores,
    ModelInfo,
    Prompt,
    RankedCandidate,
    RankResult,
    Response,
    ScoreResult,
    StreamResult,
)
from guerdon.v1 import reward_pb2, reward_pb2_grpc

MAX_IN_FLIGHT = 100_000


class AsyncClient:
    """What the clients share: where the servers are, and opening and closing.

    Use it as an async context manager, or call `close`. It belongs to the event loop that it is
    used on, until that is closed; another one then opens a connection of its own. It can be
    pickled and copied: the other one has the same settings, the token among them. A process that
    is forked after any client was used cannot use one over gRPC: it says so. Over HTTP it can.

    Args:
        target: `host:port`; a gRPC target such as `dns:///rewards:50051` (calls go round all its
            addresses) or `ipv4:10.0.0.1:50051,10.0.0.2:50051`; or a list of `host:port`. A
            list's names are looked up once. Or `http://host:port` of the HTTP side (or
            `https://…`, or a list of them), for `score`, `rank`, models and `health` alone.
        token: sent as `authorization: Bearer …`.
        tls: encrypt; without it nothing is.
        retry: when to try again.
        timeout: seconds for one call, retries included; None for no limit.
        clock: time and chance, for tests.

    Raises:
        ValueError: an argument cannot be.
    """

    _max_reply_bytes = MAX_REPLY_BYTES

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None = None,
        tls: TLS | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        timeout: float | None = DEFAULT_TIMEOUT,
        clock: Clock = Clock(),  # noqa: B008 - frozen
    ) -> None:
        self._connection = _connection_class(target)(
            target,
            token=token,
            tls=tls,
            retry=retry,
            timeout=timeout,
            clock=clock,
            max_reply_bytes=self._max_reply_bytes,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls under way raise `Cancelled`."""
        await self._connection.close()

    async def health(self, service: str = "", *, timeout: float | Unset | None = UNSET) -> bool:
        """Whether a server takes requests now (of several: whether at least one does).

        It asks once, without retries.

        Args:
            service: such as `guerdon.v1.RewardService`; the whole server when empty.

        Raises:
            Unavailable: nobody is there.
            NotFound: there is no such service.
        """
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        stub = health_pb2_grpc.HealthStub(await self._connection.channel())
        request = health_pb2.HealthCheckRequest(service=service)
        deadline = self._connection.deadline(timeout)
        reply: Any = await self._connection.call_once(stub.Check, request, deadline)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


class AsyncRewardClient(AsyncClient):
    """Scores responses with the reward models of one or several servers.

        async with AsyncRewardClient("localhost:50051") as rewards:
            result = await rewards.score("helpful", [Item("What is rain?", ["Water.", "Mud."])])

    Safe to use from many tasks at once. The arguments are those of `AsyncClient`, and:

    Args:
        limits: how a large call is cut into requests.

    Every method raises `GuerdonError`; see `guerdon.client.errors`.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        **options: Unpack[ConnectionOptions],
    ) -> None:
        self._max_reply_bytes = limits.max_reply_bytes
        super().__init__(target, **options)
        self._limits = limits

    async def score(
        self, model: str, items: Sequence[Item], **options: Unpack[ScoringOptions]
    ) -> ScoreResult:
        """Scores of all items, in their order: all or nothing, and all by one revision.

        A large call is cut into several requests (see `Limits`). When a model is promoted
        half-way, the parts of the minority are scored again with the other revision.

        Args:
            model: a name, an alias, or `name@revision`.
            items: prompts with their responses; N responses to one prompt belong in one item.
            options: see `ScoringOptions`.

        Raises:
            MixedRevisions: no one revision could score everything.
        """
        deadline = self._deadline(options)
        stub = await self._stub(deadline)

        async def ask(request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
            return await self._connection.call(stub.Score, request, deadline)

        wire_options = _wire.options(options)
        clock = self._connection.clock
        return await ScoreCall(ask, model, items, wire_options, self._limits, clock).run()

    async def score_one(
        self,
        model: str,
        prompt: Prompt,
        responses: Sequence[Response],
        **options: Unpack[ScoringOptions],
    ) -> ItemScores:
        """Scores of the responses to one prompt."""
        result = await self.score(model, [Item(prompt, responses)], **options)
        return result.items[0]

    async def score_stream(
        self,
        model: str,
        items: AsyncIterable[Item] | Iterable[Item],
        *,
        in_flight: int = 64,
        **options: Unpack[ScoringOptions],
    ) -> AsyncGenerator[StreamResult, None]:
        """Results as they finish, not in order; an item at fault fails alone.

        When the stream breaks it is made anew, and what was not answered is sent again. Shed
        items are sent again after the time that the server names. Memory holds `in_flight`
        items, however many there are.

        Args:
            model: a name, an alias, or `name@revision`. Only the last is safe from a
                promotion while the stream lasts.
            items: read as there is room; a plain iterable must not block.
            in_flight: most items that are taken and not yet handed back.
            options: see `ScoringOptions`; `timeout` is for each item.

        Raises:
            GuerdonError: the servers cannot be used any more. An item's own error is in its
                result.
        """
        check_number("in_flight", in_flight, 1, MAX_IN_FLIGHT, whole=True)
        self._deadline(options)  # a wrong timeout is told of here
        stream = ScoreStream(
            self._connection,
            check_model(model),
            items,
            _wire.options(options),
            self._limits,
            timeout=options.get("timeout", UNSET),
            in_flight=in_flight,
        )
        results = stream.results()
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    async def rank(
        self,
        model: str,
        prompt: Prompt,
        candidates: Sequence[Response],
        *,
        top_n: int | None = None,
        **options: Unpack[ScoringOptions],
    ) -> RankResult:
        """The candidates, best first; equal scores stay in the order given.

        Args:
            model: a name, an alias, or `name@revision`.
            prompt: what they answer.
            candidates: at least one.
            top_n: how many to return; all when not given.
            options: see `ScoringOptions`.
        """
        if top_n is not None:
            check_number("top_n", top_n, 1, 2**31 - 1, whole=True, instead="None for all")
        item = Item(prompt, candidates)
        size = _wire.prompt_bytes(item.prompt, "prompt") + sum(
            _wire.response_bytes(c, f"candidates[{i}]") for i, c in enumerate(item.responses)
        )
        if size > self._limits.max_bytes or len(item.responses) > self._limits.max_responses:
            return _ranked(await self.score(model, [item], **options), top_n)
        request = reward_pb2.RankRequest(
            model=check_model(model),
            prompt=_wire.prompt(item.prompt),
            candidates=[_wire.response(candidate) for candidate in item.responses],
            top_n=top_n or 0,
            options=_wire.options(options),
        )
        deadline = self._deadline(options)
        reply = await self._connection.call((await self._stub(deadline)).Rank, request, deadline)
        return _wire.rank_result(reply, len(item.responses), top_n or 0)

    async def list_models(self, *, timeout: float | Unset | None = UNSET) -> list[ModelInfo]:
        """All loaded revisions, ordered by name, then load time."""
        request, deadline = reward_pb2.ListModelsRequest(), self._connection.deadline(timeout)
        reply = await self._connection.call(
            (await self._stub(deadline)).ListModels, request, deadline
        )
        return [_wire.model_info(model) for model in reply.models]

    async def get_model(self, name: str, *, timeout: float | Unset | None = UNSET) -> ModelInfo:
        """One model, by name, alias or `name@revision`.

        Raises:
            NotFound: there is none.
        """
        request = reward_pb2.GetModelRequest(model=check_model(name))
        deadline = self._connection.deadline(timeout)
        reply = await self._connection.call(
            (await self._stub(deadline)).GetModel, request, deadline
        )
        return _wire.model_info(reply.model)

    def _deadline(self, options: ScoringOptions) -> Deadline:
        return self._connection.deadline(options.get("timeout", UNSET))

    async def _stub(self, deadline: Deadline) -> reward_pb2_grpc.RewardServiceAsyncStub:
        return reward_pb2_grpc.RewardServiceStub(await self._connection.channel(deadline))


def _connection_class(target: str | Sequence[str]) -> type[Connection]:
    if speaks_http(target):
        from guerdon.client._http import HttpConnection

        return HttpConnection
    return Connection


def _ranked(result: ScoreResult, top_n: int | None) -> RankResult:
    """A ranking from scores, as the server makes it."""
    scores = result.items[0].scores
    order = sorted(range(len(scores)), key=lambda place: -scores[place].score)
    ranking = tuple(RankedCandidate(place, scores[place]) for place in order[:top_n])
    return RankResult(ranking, result.info, result.timing)
