"""A reward server over a real socket whose scores are a formula, to watch the command line."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from guerdon.v1 import admin_pb2, admin_pb2_grpc, common_pb2, reward_pb2, reward_pb2_grpc

REVISION = "0123456789abcdef"


def prompt_text(prompt: common_pb2.Prompt) -> str:
    if prompt.WhichOneof("content") == "text":
        return "text:" + prompt.text
    return "".join(f"<{m.role}>{m.content}" for m in prompt.conversation.messages)


def formula(prompt: str, response: str) -> float:
    """The score: any change of prompt, response or their pairing changes it."""
    return zlib.crc32(f"{prompt}\0{response}".encode()) / 2**20


def text_score(prompt: str, response: str) -> float:
    """The score of a response to a prompt that is text."""
    return formula("text:" + prompt, response)


def chat_score(turns: list[dict[str, str]], response: str) -> float:
    """The score of a response to a conversation."""
    return formula("".join(f"<{t['role']}>{t['content']}" for t in turns), response)


_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 * 1024 * 1024)]


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reward(reward_pb2_grpc.RewardServiceServicer):
    """Scores by the formula; answers a stream out of order."""

    def __init__(self) -> None:
        self.revision = REVISION
        self.delay_s = 0.0
        self.release = threading.Event()
        """A prompt with "hold" in it waits for this, while the others are answered."""
        self.normalizable = True
        self.seen: list[reward_pb2.ScoreStreamRequest] = []
        self.metadata: list[dict[str, Any]] = []

    def _known(self, name: str) -> None:
        if name not in ("rm", "quality", f"rm@{self.revision}"):
            raise Refused(grpc.StatusCode.NOT_FOUND, f"no model '{name}' is loaded")

    def _score(self, model: str, item: Any, options: Any) -> reward_pb2.ItemScores:
        self._known(model)
        if options.normalize and not self.normalizable:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "the model has no statistics")
        prompt = prompt_text(item.prompt)
        scores = []
        for response in item.responses:
            if "poison" in response.text:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "responses[0]: is poison")
            if "nan" in response.text:
                raise Refused(grpc.StatusCode.INTERNAL, "the score is not a finite number")
            score = reward_pb2.ResponseScore(
                score=formula(prompt, response.text), token_count=7, reused_tokens=2
            )
            score.attributes.add(name="helpful", value=0.5)
            scores.append(score)
        return reward_pb2.ItemScores(id=item.id, scores=scores)

    def Score(self, request: Any, context: grpc.ServicerContext) -> reward_pb2.ScoreResponse:
        try:
            items = [self._score(request.model, i, request.options) for i in request.items]
        except Refused as exc:
            context.abort(exc.code, str(exc))
        return reward_pb2.ScoreResponse(items=items, info=self._info())

    def ScoreStream(
        self, request_iterator: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[reward_pb2.ScoreStreamResponse]:
        self.metadata.append(dict(context.invocation_metadata()))
        waiting: list[Any] = []
        lock, arrived, ended = threading.Lock(), threading.Event(), threading.Event()

        def read() -> None:
            try:
                for request in request_iterator:
                    with lock:
                        waiting.append(request)
                    arrived.set()
            except grpc.RpcError:
                pass
            ended.set()
            arrived.set()

        threading.Thread(target=read, daemon=True).start()
        chance = random.Random(0)
        while context.is_active():
            arrived.wait(0.1)
            with lock:
                batch, waiting[:] = list(waiting), []
                arrived.clear()
            if not batch and ended.is_set():
                return
            chance.shuffle(batch)
            held = [r for r in batch if self._held(r)]
            with lock:
                waiting.extend(held)
            for request in batch:
                if request not in held:
                    yield self._reply(request)

    def _held(self, request: reward_pb2.ScoreStreamRequest) -> bool:
        return "hold" in request.item.prompt.text and not self.release.is_set()

    def _reply(self, request: reward_pb2.ScoreStreamRequest) -> reward_pb2.ScoreStreamResponse:
        self.seen.append(request)
        time.sleep(self.delay_s)
        reply = reward_pb2.ScoreStreamResponse(request_id=request.request_id)
        try:
            item = self._score(request.model, request.item, request.options)
        except Refused as exc:
            code = code_pb2.Code.Value(exc.code.name)
            reply.error.CopyFrom(status_pb2.Status(code=code, message=str(exc)))
        else:
            reply.scores.CopyFrom(reward_pb2.StreamedScores(item=item, info=self._info()))
        return reply

    def Rank(self, request: Any, context: grpc.ServicerContext) -> reward_pb2.RankResponse:
        item = reward_pb2.ScoreItem(prompt=request.prompt, responses=request.candidates)
        try:
            scores = self._score(request.model, item, request.options).scores
        except Refused as exc:
            context.abort(exc.code, str(exc))
        order = sorted(range(len(scores)), key=lambda i: -scores[i].score)
        ranking = [
            reward_pb2.RankedCandidate(index=i, score=scores[i])
            for i in order[: request.top_n or None]
        ]
        return reward_pb2.RankResponse(ranking=ranking, info=self._info())

    def ListModels(self, request: Any, context: Any) -> reward_pb2.ListModelsResponse:
        return reward_pb2.ListModelsResponse(models=[self._model()])

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> reward_pb2.GetModelResponse:
        try:
            self._known(request.model)
        except Refused as exc:
            context.abort(exc.code, str(exc))
        return reward_pb2.GetModelResponse(model=self._model())

    def _info(self) -> reward_pb2.ScoringInfo:
        return reward_pb2.ScoringInfo(model="rm", revision=self.revision)

    def _model(self) -> reward_pb2.ModelInfo:
        return reward_pb2.ModelInfo(
            name="rm",
            revision=self.revision,
            current=True,
            aliases=["quality"],
            kind=reward_pb2.MODEL_KIND_SEQUENCE,
            architecture="LlamaForSequenceClassification",
            max_tokens=2048,
            dtype="float32",
            device="cpu",
            compute_mode=reward_pb2.COMPUTE_MODE_PACKED,
            parameters=134_515_008,
        )


class Admin(admin_pb2_grpc.ModelAdminServiceServicer):
    """Records what it is asked."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.calls: list[Any] = []

    def LoadModel(self, request: Any, context: Any) -> admin_pb2.LoadModelResponse:
        self.calls.append(request)
        if request.path == "missing":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "there is no score head")
        return admin_pb2.LoadModelResponse(model=self.reward._model())

    def UnloadModel(self, request: Any, context: Any) -> admin_pb2.UnloadModelResponse:
        self.calls.append(request)
        return admin_pb2.UnloadModelResponse(revisions=[REVISION])

    def SetAlias(self, request: Any, context: Any) -> admin_pb2.SetAliasResponse:
        self.calls.append(request)
        return admin_pb2.SetAliasResponse()

    def DeleteAlias(self, request: Any, context: Any) -> admin_pb2.DeleteAliasResponse:
        self.calls.append(request)
        return admin_pb2.DeleteAliasResponse()

    def PromoteModel(self, request: Any, context: Any) -> admin_pb2.PromoteModelResponse:
        self.calls.append(request)
        return admin_pb2.PromoteModelResponse(
            model=self.reward._model(), previous_revision="fedcba9876543210"
        )


class Server:
    """The services on a free port, or on the given one."""

    def __init__(self, port: int = 0) -> None:
        self.reward = Reward()
        self.admin = Admin(self.reward)
        self.health = health.HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(8), options=_OPTIONS)
        add: list[tuple[Callable[..., None], Any]] = [
            (reward_pb2_grpc.add_RewardServiceServicer_to_server, self.reward),
            (admin_pb2_grpc.add_ModelAdminServiceServicer_to_server, self.admin),
            (health_pb2_grpc.add_HealthServicer_to_server, self.health),
        ]
        for register, servicer in add:
            register(servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"
        self.set_serving(True)
        self._server.start()

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set("", status.SERVING if serving else status.NOT_SERVING)

    def stop(self) -> None:
        self._server.stop(0).wait()
