"""The script that anybody would write first: FastAPI around padded `transformers`.

A call's responses are one padded batch. Calls wait for each other, since forward passes side by
side would fight over the cores.
"""

from __future__ import annotations

import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tests.bench.peers.calls import Call
from tests.bench.peers.programs.plain import PlainModel
from tests.bench.peers.programs.program import arguments


class Body(BaseModel):
    """A call."""

    prompt: list[Any]
    responses: list[Any]


def main() -> None:
    """Serve for ever."""
    args = arguments()
    model = PlainModel(args.folder, args.dtype)
    app = FastAPI()
    one_at_a_time = threading.Lock()

    @app.post("/score")
    def score(body: Body) -> dict[str, list[float]]:
        with one_at_a_time:
            return {"scores": model.calls([Call(body.prompt, body.responses)])[0]}

    uvicorn.run(app, port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
