"""The fake reward server; see `guerdon.client.testing`. What it answers: `_reward_service.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from guerdon.client.testing._reward_service import (
    Context,
    FakeAdminService,
    FakeRewardService,
    ScoreFunction,
    prompt_value,
    response_value,
)
from guerdon.client.testing._server import FakeServer, refused
from guerdon.client.types import TokenIds
from guerdon.data import message_text
from guerdon.v1 import admin_pb2_grpc, reward_pb2, reward_pb2_grpc


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A request that came in: a call, or an item of a stream."""

    method: str
    """The method's name, such as `Score`."""
    request: Any
    """The protobuf message."""
    time_remaining: float | None
    """Seconds that the caller allowed, when it came in; None for no limit."""
    metadata: Mapping[str, str]


@dataclass(slots=True)
class _Model:
    """The revisions of a name, the current one, and what each scores."""

    current: str
    revisions: dict[str, ScoreFunction] = field(default_factory=dict)


class FakeRewardServer(FakeServer):
    """A FAKE: answers with the scores that you say, and fails when you say.

    Use it as a context manager, `with` or `async with`.

    Args:
        score: a function of prompt and response, or a table from response to score. By
            default a response's score is its length.
        models: names that it serves, each with revision `rev-1`.
        token: the bearer token that callers must show, if any.
    """

    SERVICE = "guerdon.v1.RewardService"
    MESSAGE_BYTES = 16 * 1024 * 1024

    def __init__(
        self,
        score: ScoreFunction | Mapping[str, float] | None = None,
        *,
        models: Iterable[str] = ("fake",),
        token: str | None = None,
    ) -> None:
        super().__init__()
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

    def add_services(self, server: grpc.aio.Server) -> None:
        """Put the scoring and the administration into a server."""
        reward_pb2_grpc.add_RewardServiceServicer_to_server(FakeRewardService(self), server)
        admin_pb2_grpc.add_ModelAdminServiceServicer_to_server(FakeAdminService(self), server)

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

    # Answers

    async def receive(self, method: str, request: Any, context: Context, left: Any) -> None:
        """Record a request; wait, refuse or fail as told."""
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        self.calls.append(RecordedCall(method, request, left, metadata))
        if self._token and metadata.get("authorization") != f"Bearer {self._token}":
            raise refused(grpc.StatusCode.UNAUTHENTICATED, "the bearer token is wrong")
        try:
            await asyncio.sleep(self.latency)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.raise_fault(method)

    def find(self, name: str) -> tuple[str, str, ScoreFunction]:
        """Name, revision and scores of a model, alias, or `name@revision`."""
        bare, _, revision = name.partition("@")
        bare = self.aliases.get(bare, bare)
        model = self.models.get(bare)
        chosen = revision or (model.current if model else "")
        if model is None or chosen not in model.revisions:
            raise refused(grpc.StatusCode.NOT_FOUND, f"no model {name!r} is loaded")
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
                raise refused(grpc.StatusCode.INTERNAL, text) from error
            reply.scores.add(score=score, token_count=1)
        return reply

    def describe(self, name: str, revision: str) -> reward_pb2.ModelInfo:
        """The description of a revision, as GetModel answers it."""
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
    """What a table has a score for: a text, a message's text, or token ids."""
    if isinstance(response, TokenIds):
        return response.ids
    return response if isinstance(response, str) else message_text(response)
