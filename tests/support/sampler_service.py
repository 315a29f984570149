"""A sampler with the formula engine, on real sockets, in the test's own event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.formula_engine import MODEL, FormulaEngine, WordTokenizer
from tests.support.in_process import InProcess, reply_of, serving

from guerdon.sampler.app import SamplerServer
from guerdon.sampler.config import load_config
from guerdon.sampler.tokenizer import Tokenizer
from guerdon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

WEIGHTS = bytes(range(38))


@dataclass
class Harness(InProcess):
    """A running sampler and ways to reach it."""

    engine: FormulaEngine

    @property
    def policy(self) -> Any:
        return policy_pb2_grpc.PolicyServiceStub(self.channel)

    async def generate(self, *items: Any, **options: Any) -> list[policy_pb2.GenerateResponse]:
        return [reply async for reply in self.policy.Generate(request(*items, **options))]

    async def publish(
        self, version: int, data: bytes = WEIGHTS, **how: Any
    ) -> policy_pb2.UpdateWeightsResponse:
        call = self.policy.UpdateWeights(iter(update(version, data, **how)), timeout=20)
        reply: policy_pb2.UpdateWeightsResponse = await reply_of(call)
        return reply

    async def metric(self, line: str) -> float:
        """The value of one of the sampler's lines of /metrics, 0 when it is not there."""
        return await super().metric(f"guerdon_sampler_{line}")

    async def still_serves(self) -> None:
        """Fails unless a plain call is answered."""
        assert len(await self.generate(item(1, n=2))) == 2


@asynccontextmanager
async def start_sampler(tokenizer: Tokenizer | None = None, **flags: Any) -> AsyncIterator[Harness]:
    """A sampler on free ports; its tokens are words unless another tokenizer is given."""
    settings = {"model": "formula", "port": 0, "http_port": 0, "drain_grace": 10.0, **flags}
    engine = FormulaEngine()
    server = SamplerServer(load_config(None, settings), engine, tokenizer or WordTokenizer())
    async with serving(server) as running:
        # The start draws a token to see that it can.
        engine.behaviour.drawn = engine.behaviour.tokens = 0
        try:
            yield Harness(**vars(running), engine=engine)
        finally:
            engine.behaviour.gate.set()
            engine.behaviour.publish_gate.set()
            server.lifecycle.start_draining()
            await asyncio.wait({running.finished})
            if not running.finished.cancelled():
                running.finished.exception()


def item(*tokens: int, **fields: Any) -> policy_pb2.GenerateItem:
    prompt = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=tokens or (1, 2, 3)))
    return policy_pb2.GenerateItem(prompt=prompt, **fields)


def request(
    *items: policy_pb2.GenerateItem,
    min_version: int = 0,
    return_text: bool = False,
    report_progress: bool = False,
    **options: Any,
) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(
        items=items or [item()],
        options=policy_pb2.SamplingOptions(**{"max_tokens": 16, **options}),
        min_version=min_version,
        return_text=return_text,
        report_progress=report_progress,
    )


def begin(version: int, *, reset: bool = False, **changes: Any) -> policy_pb2.UpdateWeightsRequest:
    fields: dict[str, Any] = {
        "version": version,
        "tensors": [
            policy_pb2.TensorSpec(name=s.name, dtype=s.dtype, shape=s.shape) for s in MODEL
        ],
        "reset": reset,
        **changes,
    }
    if not {"shared_path", "nccl", "stream"} & set(fields):
        fields["stream"] = policy_pb2.StreamSource()
    return policy_pb2.UpdateWeightsRequest(begin=policy_pb2.BeginUpdate(**fields))


def chunk(tensor: int, offset: int, data: bytes) -> policy_pb2.UpdateWeightsRequest:
    return policy_pb2.UpdateWeightsRequest(
        chunk=policy_pb2.TensorChunk(tensor=tensor, offset=offset, data=data)
    )


def commit(data: bytes = WEIGHTS, **changes: Any) -> policy_pb2.UpdateWeightsRequest:
    fields = {"sha256": hashlib.sha256(data).digest(), **changes}
    return policy_pb2.UpdateWeightsRequest(commit=policy_pb2.CommitUpdate(**fields))


def update(
    version: int, data: bytes = WEIGHTS, *, reset: bool = False, canaries: Sequence[Any] = ()
) -> Iterator[policy_pb2.UpdateWeightsRequest]:
    """A whole update, in pieces."""
    yield begin(version, reset=reset)
    yield chunk(0, 0, data[:10])
    yield chunk(0, 10, data[10:32])
    yield chunk(1, 0, data[32:])
    yield commit(data, canaries=canaries)
