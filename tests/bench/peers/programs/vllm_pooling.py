"""vLLM's pooling models behind the smallest server: raw logits, everything else as by default."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel
from tests.bench.peers.calls import Call
from tests.bench.peers.programs.plain import Encoder
from tests.bench.peers.programs.program import arguments
from vllm import AsyncEngineArgs, PoolingParams
from vllm.config import PoolerConfig
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.v1.engine.async_llm import AsyncLLM


class Body(BaseModel):
    """A call; those of the lowest priority go first."""

    prompt: list[Any]
    responses: list[Any]
    priority: int = 0


async def main() -> None:
    """Serve until a signal comes."""
    args = arguments()
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=args.folder,
            dtype=args.dtype,
            runner="pooling",
            convert="classify",
            pooler_config=PoolerConfig(use_activation=False),
            scheduling_policy="priority",
        )
    )
    encoder = Encoder(args.folder)
    numbers = itertools.count()
    app = FastAPI()

    async def one(tokens: list[int], priority: int) -> float:
        params = PoolingParams(task="classify", use_activation=False)
        prompt = {"prompt_token_ids": tokens}
        outputs = engine.encode(prompt, params, str(next(numbers)), priority=priority)
        return [float(output.outputs.data[0]) async for output in outputs][-1]

    @app.post("/score")
    @with_cancellation  # type: ignore[untyped-decorator]
    async def score(body: Body, raw_request: Request) -> dict[str, list[float]]:
        sequences = encoder.sequences(Call(body.prompt, body.responses))
        scores = await asyncio.gather(*(one(tokens, body.priority) for tokens in sequences))
        return {"scores": list(scores)}

    await uvicorn.Server(uvicorn.Config(app, port=args.port, log_level="warning")).serve()
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
