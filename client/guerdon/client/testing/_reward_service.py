"""The services of the fake server; see `guerdon.client.testing`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from guerdon.client.testing._server import FakeRefusal, abort, refused
from guerdon.client.types import FormattedText, TokenIds
from guerdon.data import Conversation, Message
from guerdon.data.conversation_protos import conversation_from_proto, message_from_proto
from guerdon.together import cancel
from guerdon.v1 import admin_pb2, admin_pb2_grpc, common_pb2, reward_pb2, reward_pb2_grpc

if TYPE_CHECKING:
    from guerdon.client.testing._reward_server import FakeRewardServer

Context = Any
"""grpc.aio.ServicerContext; its type parameters differ from method to method."""

PromptValue = str | list[Message] | Conversation | FormattedText | TokenIds
ResponseValue = str | Message | TokenIds
ScoreFunction = Callable[[Any, Any], float]
"""Takes a prompt (`str`, list of messages, `Conversation`, `FormattedText`, `TokenIds`) and a
response (`str`, message, `TokenIds`), and returns a score."""


def answered(answer: Callable[[Any, Any], Any]) -> Any:
    """An RPC whose requests the fake receives, and may refuse, before they are answered."""

    @functools.wraps(answer)
    async def call(self: Any, request: Any, context: Context) -> Any:
        try:
            left = context.time_remaining()
            await self._fake.receive(answer.__name__, request, context, left)
            return answer(self, request)
        except FakeRefusal as error:
            await abort(context, error.status)

    return call


class FakeRewardService(reward_pb2_grpc.RewardServiceServicer):
    """RewardService, answered by the fake."""

    def __init__(self, fake: FakeRewardServer) -> None:
        self._fake = fake

    @answered
    def Score(self, request: Any) -> reward_pb2.ScoreResponse:
        name, revision, function = self._fake.find(request.model)
        return reward_pb2.ScoreResponse(
            items=[
                self._fake.score_item(item, function, f"items[{i}]")
                for i, item in enumerate(request.items)
            ],
            info=scoring_info(name, revision, request.options),
        )

    async def ScoreStream(  # type: ignore[override] # grpc.aio's other way: context.write
        self, request_iterator: Any, context: Context
    ) -> None:
        left = self._fake.take_break()
        tasks: set[asyncio.Task[None]] = set()
        replies: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            async for request in request_iterator:
                task = asyncio.create_task(self._one(request, context, replies))
                tasks.add(task)
            await asyncio.gather(*tasks)
            replies.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (reply := await replies.get()) is not None:
                if left == 0:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "broken by the test")
                await context.write(reply)
                left = None if left is None else left - 1
        finally:
            await cancel([reading, *tasks])

    async def _one(self, request: Any, context: Context, replies: asyncio.Queue[Any]) -> None:
        reply = reward_pb2.ScoreStreamResponse(request_id=request.request_id)
        left = request.timeout.ToMicroseconds() / 1e6 if request.HasField("timeout") else None
        try:
            await self._fake.receive("ScoreStream", request, context, left)
            name, revision, function = self._fake.find(request.model)
            reply.scores.item.CopyFrom(self._fake.score_item(request.item, function, "item"))
            reply.scores.info.CopyFrom(scoring_info(name, revision, request.options))
        except FakeRefusal as error:
            reply.error.CopyFrom(error.status)
        replies.put_nowait(reply)

    @answered
    def Rank(self, request: Any) -> reward_pb2.RankResponse:
        name, revision, function = self._fake.find(request.model)
        item = reward_pb2.ScoreItem(prompt=request.prompt, responses=request.candidates)
        scores = self._fake.score_item(item, function, "").scores
        order = sorted(range(len(scores)), key=lambda place: -scores[place].score)
        reply = reward_pb2.RankResponse(info=scoring_info(name, revision, request.options))
        for place in order[: request.top_n or None]:
            reply.ranking.add(index=place, score=scores[place])
        return reply

    @answered
    def ListModels(self, request: Any) -> reward_pb2.ListModelsResponse:
        return reward_pb2.ListModelsResponse(
            models=[
                self._fake.describe(name, revision)
                for name, model in sorted(self._fake.models.items())
                for revision in model.revisions
            ]
        )

    @answered
    def GetModel(self, request: Any) -> reward_pb2.GetModelResponse:
        name, revision, _ = self._fake.find(request.model)
        return reward_pb2.GetModelResponse(model=self._fake.describe(name, revision))


class FakeAdminService(admin_pb2_grpc.ModelAdminServiceServicer):
    """ModelAdminService, answered by the fake: a loaded path becomes the revision's name."""

    def __init__(self, fake: FakeRewardServer) -> None:
        self._fake = fake

    @answered
    def LoadModel(self, request: Any) -> admin_pb2.LoadModelResponse:
        self._fake.add_revision(request.name, request.path, promote=request.promote)
        model = self._fake.describe(request.name, request.path)
        return admin_pb2.LoadModelResponse(model=model)

    @answered
    def UnloadModel(self, request: Any) -> admin_pb2.UnloadModelResponse:
        name, _, _ = self._fake.find(request.name)
        gone = [request.revision] if request.revision else [*self._fake.models[name].revisions]
        for revision in gone:
            self._fake.find(f"{name}@{revision}")
            self._fake.remove_revision(name, revision)
        return admin_pb2.UnloadModelResponse(revisions=gone)

    @answered
    def SetAlias(self, request: Any) -> admin_pb2.SetAliasResponse:
        self._fake.find(request.name)
        self._fake.aliases[request.alias] = request.name
        return admin_pb2.SetAliasResponse()

    @answered
    def DeleteAlias(self, request: Any) -> admin_pb2.DeleteAliasResponse:
        if self._fake.aliases.pop(request.alias, None) is None:
            raise refused(grpc.StatusCode.NOT_FOUND, "no such alias")
        return admin_pb2.DeleteAliasResponse()

    @answered
    def PromoteModel(self, request: Any) -> admin_pb2.PromoteModelResponse:
        name, revision, _ = self._fake.find(f"{request.name}@{request.revision}")
        previous, self._fake.models[name].current = self._fake.models[name].current, revision
        model = self._fake.describe(name, revision)
        return admin_pb2.PromoteModelResponse(model=model, previous_revision=previous)


def prompt_value(prompt: common_pb2.Prompt) -> PromptValue:
    """A prompt as your function gets it."""
    kind = prompt.WhichOneof("content")
    if kind == "text":
        return prompt.text
    if kind == "formatted_text":
        return FormattedText(prompt.formatted_text)
    if kind == "token_ids":
        return TokenIds(tuple(prompt.token_ids.ids))
    conversation = conversation_from_proto(prompt.conversation, "prompt.conversation", _malformed)
    return conversation if conversation.inputs else list(conversation.messages)


def response_value(response: common_pb2.Response) -> ResponseValue:
    """A response as your function gets it."""
    form = response.WhichOneof("content")
    if form == "token_ids":
        return TokenIds(tuple(response.token_ids.ids))
    if form == "message":
        return message_from_proto(response.message, "response", _malformed)
    return response.text


def _malformed(field: str, reason: str) -> FakeRefusal:
    return refused(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {reason}")


def scoring_info(name: str, revision: str, options: Any) -> reward_pb2.ScoringInfo:
    return reward_pb2.ScoringInfo(
        model=name,
        revision=revision,
        activation=options.activation or reward_pb2.ACTIVATION_NONE,
        normalized=options.normalize,
        compute_mode=reward_pb2.COMPUTE_MODE_PACKED,
    )
