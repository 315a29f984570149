"""A sampler with the formula engine, on real sockets, in the test's own event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2
from tests.support.formula_engine import MODEL, FormulaEngine, WordTokenizer
from tests.support.statuses import details

from guerdon.sampler.app import SamplerServer
from guerdon.sampler.config import load_config
from guerdon.sampler.tokenizer import Tokenizer
from guerdon.serving.process.ports import Ports
from guerdon.v1 import common_pb2, policy_pb2, policy_pb2_grpc

WEIGHTS = bytes(range(38))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110 - nobody sets an event for it
        await asyncio.sleep(0.002)


@dataclass
class Harness:
    """A running sampler and ways to reach it."""

    server: SamplerServer
    engine: FormulaEngine
    ports: Ports
    channel: grpc.aio.Channel
    http: httpx.AsyncClient
    finished: asyncio.Task[None]

    @property
    def policy(self) -> Any:
        return policy_pb2_grpc.PolicyServiceStub(self.channel)

    async def generate(self, *items: Any, **options: Any) -> list[policy_pb2.GenerateResponse]:
        return [reply async for reply in self.policy.Generate(request(*items, **options))]

    async def publish(
        self, version: int, data: bytes = WEIGHTS, **how: Any
    ) -> policy_pb2.UpdateWeightsResponse:
        reply: policy_pb2.UpdateWeightsResponse = await self.policy.UpdateWeights(
            iter(update(version, data, **how)), timeout=20
        )
        return reply

    async def metric(self, line: str) -> float:
        """The value of one line of /metrics, 0 when it is not there."""
        text = (await self.http.get("/metrics")).text
        for found in text.splitlines():
            if found.startswith(f"guerdon_sampler_{line} "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0

    async def still_serves(self) -> None:
        """Fails unless a plain call is answered."""
        assert len(await self.generate(item(1, n=2))) == 2


@asynccontextmanager
async def start_sampler(tokenizer: Tokenizer | None = None, **flags: Any) -> AsyncIterator[Harness]:
    """A sampler on free ports; its tokens are words unless another tokenizer is given."""
    settings = {"model": "formula", "port": 0, "http_port": 0, "drain_grace": 10.0, **flags}
    engine = FormulaEngine()
    server = SamplerServer(load_config(None, settings), engine, tokenizer or WordTokenizer())
    ready: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    finished = asyncio.create_task(server.run(ready.set_result, signals=False))
    both: set[asyncio.Future[Any]] = {ready, finished}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if finished.done():
        finished.result()
    ports = ready.result()
    engine.behaviour.drawn = 0  # the start draws a token to see that it can
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{ports.port}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http_port}", timeout=30) as http,
    ):
        try:
            yield Harness(server, engine, ports, channel, http, finished)
        finally:
            engine.behaviour.gate.set()
            engine.behaviour.publish_gate.set()
            server.lifecycle.start_draining()
            await asyncio.wait({finished})
            if not finished.cancelled():
                finished.exception()


def item(*tokens: int, **fields: Any) -> policy_pb2.GenerateItem:
    prompt = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=tokens or (1, 2, 3)))
    return policy_pb2.GenerateItem(prompt=prompt, **fields)


def request(
    *items: policy_pb2.GenerateItem,
    min_version: int = 0,
    return_text: bool = False,
    **options: Any,
) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(
        items=items or [item()],
        options=policy_pb2.SamplingOptions(**{"max_tokens": 16, **options}),
        min_version=min_version,
        return_text=return_text,
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


def field_at_fault(error: grpc.aio.AioRpcError) -> str:
    """The field that google.rpc.BadRequest names."""
    bad = error_details_pb2.BadRequest()
    assert details(error).details[0].Unpack(bad)
    return str(bad.field_violations[0].field)
