"""The fake reward server; see `guerdon.client.testing`. What it answers: `_reward_service.py`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from guerdon.client._loop import run
from guerdon.client.config import Clock
from guerdon.client.testing._reward_service import (
    SERVER_OPTIONS,
    Admin,
    Context,
    Refused,
    Reward,
    ScoreFunction,
    make_status,
    prompt_value,
    response_value,
    retry_info,
)
from guerdon.client.types import TokenIds
from guerdon.v1 import admin_pb2_grpc, reward_pb2, reward_pb2_grpc


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A request that came in: a call, or an item of a stream."""

    method: str
    """Such as `Score`."""
    request: Any
    """The protobuf message."""
    time_remaining: float | None
    """Seconds that the caller allowed, when it came in; None for no limit."""
    metadata: Mapping[str, str]


@dataclass(slots=True)
class _Fault:
    """What happens instead of an answer."""

    status: status_pb2.Status
    times: int
    method: str | None


@dataclass(slots=True)
class _Model:
    """The revisions of a name, the current one, and what each scores."""

    current: str
    revisions: dict[str, ScoreFunction] = field(default_factory=dict)


class FakeClock:
    """A clock that sleeps in no time and remembers how long; give `clock.clock` to a client.

    Args:
        chance: stands for the jitter: where between its bounds a random number lies, 0 to 1.
    """

    def __init__(self, chance: float = 0.5) -> None:
        self.time = 0.0
        self.sleeps: list[float] = []
        self.chance = chance

    @property
    def clock(self) -> Clock:
        """For the `clock` argument of a client."""
        return Clock(now=lambda: self.time, sleep=self._sleep, uniform=self._uniform)

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance


class FakeRewardServer:
    """A FAKE: answers with the scores that you say, and fails when you say.

    Use it as a context manager, `with` or `async with`.

    Args:
        score: a function of prompt and response, or a table from response to score. By
            default a response's score is its length.
        models: names that it serves, each with revision `rev-1`.
        token: the bearer token that callers must show, if any.
    """

    def __init__(
        self,
        score: ScoreFunction | Mapping[str, float] | None = None,
        *,
        models: Iterable[str] = ("fake",),
        token: str | None = None,
    ) -> None:
        self._token = token
        self._score = _function(score)
        self.models = {name: _Model("rev-1", {"rev-1": self._score}) for name in models}
        self.aliases: dict[str, str] = {}
        self.calls: list[RecordedCall] = []
        """Everything that came in, in order, what failed included."""
        self.cancelled = 0
        """Calls whose caller left before the answer."""
        self.latency = 0.0
        """Seconds before every answer."""
        self.port = 0
        self._faults: deque[_Fault] = deque()
        self._breaks: deque[int] = deque()
        self._server: grpc.aio.Server | None = None
        self._health = health_aio.HealthServicer()

    @property
    def target(self) -> str:
        """`host:port`, for a client."""
        return f"127.0.0.1:{self.port}"

    # Faults -------------------------------------------------------------------------------

    def fail(
        self,
        code: grpc.StatusCode,
        message: str = "injected by the test",
        *,
        times: int = 1,
        retry_after: float | None = None,
        method: str | None = None,
    ) -> None:
        """Answer the next requests with an error; items of a stream each count.

        Args:
            code: the status.
            message: its text.
            times: how many requests.
            retry_after: sent as `google.rpc.RetryInfo`.
            method: such as `Score`; any when not given.
        """
        details = [] if retry_after is None else [retry_info(retry_after)]
        self._faults.append(_Fault(make_status(code, message, details), times, method))

    def break_streams(self, *, after: int, times: int = 1) -> None:
        """End the next streams with UNAVAILABLE after some replies, whatever was asked."""
        self._breaks.extend([after] * times)

    def add_revision(
        self,
        model: str,
        revision: str,
        score: ScoreFunction | Mapping[str, float] | None = None,
        *,
        promote: bool = True,
    ) -> None:
        """Load a revision, and serve it at once unless told not to."""
        entry = self.models.setdefault(model, _Model(revision))
        entry.revisions[revision] = self._score if score is None else _function(score)
        if promote:
            entry.current = revision

    def remove_revision(self, model: str, revision: str) -> None:
        """Unload a revision."""
        del self.models[model].revisions[revision]

    # Start and stop -----------------------------------------------------------------------

    async def start(self) -> None:
        """Listen: on a free port, later on the same one again."""
        server = grpc.aio.server(
            options=[*SERVER_OPTIONS, ("grpc.max_receive_message_length", 16 * 1024 * 1024)]
        )
        reward_pb2_grpc.add_RewardServiceServicer_to_server(Reward(self), server)
        admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(Admin(self), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._server = server
        await self.set_serving(True)

    async def stop(self) -> None:
        """Drop all connections and stop listening."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def restart(self) -> None:
        """Drop all connections and listen on the same port again."""
        await self.stop()
        await self.start()

    async def set_serving(self, serving: bool) -> None:
        """What `grpc.health.v1` says; scoring goes on either way."""
        status = health_pb2.HealthCheckResponse
        state = status.SERVING if serving else status.NOT_SERVING
        for service in ("", "guerdon.v1.RewardService"):
            await self._health.set(service, state)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        run(self.start())
        return self

    def __exit__(self, *exc_info: object) -> None:
        run(self.stop())

    # Answers ------------------------------------------------------------------------------

    async def receive(self, method: str, request: Any, context: Context, left: Any) -> None:
        """Record a request; wait, refuse or fail as told."""
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        self.calls.append(RecordedCall(method, request, left, metadata))
        if self._token and metadata.get("authorization") != f"Bearer {self._token}":
            raise Refused(make_status(grpc.StatusCode.UNAUTHENTICATED, "the bearer token is wrong"))
        try:
            await asyncio.sleep(self.latency)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for fault in self._faults:
            if fault.method in (None, method):
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                raise Refused(fault.status)

    def find(self, name: str) -> tuple[str, str, ScoreFunction]:
        """Name, revision and scores of a model, alias, or `name@revision`."""
        bare, _, revision = name.partition("@")
        bare = self.aliases.get(bare, bare)
        model = self.models.get(bare)
        chosen = revision or (model.current if model else "")
        if model is None or chosen not in model.revisions:
            raise Refused(make_status(grpc.StatusCode.NOT_FOUND, f"no model {name!r} is loaded"))
        return bare, chosen, model.revisions[chosen]

    def score_item(self, item: Any, function: ScoreFunction, where: str) -> reward_pb2.ItemScores:
        """The fake scores of one item."""
        prompt = prompt_value(item.prompt)
        reply = reward_pb2.ItemScores(id=item.id)
        for place, response in enumerate(item.responses):
            try:
                score = float(function(prompt, response_value(response)))
            except Exception as error:
                text = f"{where}.responses[{place}]: the fake has no score: {error!r}"
                raise Refused(make_status(grpc.StatusCode.INTERNAL, text)) from error
            reply.scores.add(score=score, token_count=1)
        return reply

    def take_break(self) -> int | None:
        """After how many replies this stream is to break."""
        return self._breaks.popleft() if self._breaks else None

    def describe(self, name: str, revision: str) -> reward_pb2.ModelInfo:
        """What it says of a model."""
        return reward_pb2.ModelInfo(
            name=name,
            revision=revision,
            current=self.models[name].current == revision,
            aliases=sorted(alias for alias, of in self.aliases.items() if of == name),
            kind=reward_pb2.MODEL_KIND_SEQUENCE,
            architecture="Fake",
            max_tokens=4096,
            dtype="float32",
            device="fake",
            compute_mode=reward_pb2.COMPUTE_MODE_PACKED,
        )


def _function(score: ScoreFunction | Mapping[str, float] | None) -> ScoreFunction:
    if score is None:
        return lambda prompt, response: float(len(_key(response)))
    if isinstance(score, Mapping):
        table = dict(score)
        return lambda prompt, response: table[_key(response)]
    return score


def _key(response: Any) -> Any:
    return response.ids if isinstance(response, TokenIds) else response
