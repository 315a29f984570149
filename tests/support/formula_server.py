"""A reward server over a real socket whose scores are a formula, to watch the command line."""

from __future__ import annotations

import asyncio
import random
import threading
import zlib
from typing import Any

import grpc

from guerdon.client.sync import run
from guerdon.client.testing import FakeRewardServer
from guerdon.client.testing._server import refused
from guerdon.v1 import reward_pb2

REVISION = "0123456789abcdef"


def formula(prompt: str, response: str) -> float:
    """The score: any change of prompt, response or their pairing changes it."""
    return zlib.crc32(f"{prompt}\0{response}".encode()) / 2**20


def text_score(prompt: str, response: str) -> float:
    """The score of a response to a prompt that is text."""
    return formula("text:" + prompt, response)


def chat_score(turns: list[dict[str, str]], response: str) -> float:
    """The score of a response to a conversation."""
    return formula("".join(f"<{t['role']}>{t['content']}" for t in turns), response)


def _score(prompt: Any, response: str) -> float:
    return (text_score if isinstance(prompt, str) else chat_score)(prompt, response)


class Server(FakeRewardServer):
    """Scores by the formula; answers a stream out of order, one item after the other."""

    def __init__(self) -> None:
        super().__init__(_score, models=())
        self.add_revision("rm", REVISION)
        self.aliases["quality"] = "rm"
        self.delay_s = 0.0
        self.release = threading.Event()
        """A prompt with "hold" in it waits for this, while the others are answered."""
        self.seen: list[reward_pb2.ScoreStreamRequest] = []
        """Items of streams as they are answered."""
        self._chance = random.Random(0)
        self._answering = asyncio.Lock()

    def close(self) -> None:
        """Stop; `with` starts it again on the same port."""
        run(self.stop())

    def say_not_serving(self) -> None:
        """Let the health say so."""
        run(self.set_serving(False))

    async def receive(self, method: str, request: Any, context: Any, left: Any) -> None:
        await super().receive(method, request, context, left)
        if method == "LoadModel" and request.path == "missing":
            raise refused(grpc.StatusCode.FAILED_PRECONDITION, "there is no score head")
        if method != "ScoreStream":
            return
        await asyncio.sleep(self._chance.random() / 500)
        while "hold" in request.item.prompt.text and not self.release.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with self._answering:
            self.seen.append(request)
            await asyncio.sleep(self.delay_s)

    def score_item(self, item: Any, function: Any, where: str) -> reward_pb2.ItemScores:
        for response in item.responses:
            if "poison" in response.text:
                raise refused(grpc.StatusCode.INVALID_ARGUMENT, "responses[0]: is poison")
            if "nan" in response.text:
                raise refused(grpc.StatusCode.INTERNAL, "the score is not a finite number")
        scored = super().score_item(item, function, where)
        for score in scored.scores:
            score.token_count, score.reused_tokens = 7, 2
            score.attributes.add(name="helpful", value=0.5)
        return scored

    def find(self, name: str) -> Any:
        bare, _, start = name.partition("@")
        known = self.models[bare].revisions if start and bare in self.models else ()
        return super().find(next((f"{bare}@{r}" for r in known if r.startswith(start)), name))

    def describe(self, name: str, revision: str) -> reward_pb2.ModelInfo:
        model = super().describe(name, revision)
        model.architecture = "LlamaForSequenceClassification"
        model.max_tokens, model.parameters = 2048, 134_515_008
        return model
