"""A real reward server with one tiny chat model, for all that speaks to it in other formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

LABEL = "GOOD"
"""What the model calls its output."""
QUESTION, ANSWER = "What is rain?", "Water that falls from clouds."
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
WHOLE = f"{PROMPT}{ANSWER}<|im_end|>\n"


@dataclass(frozen=True)
class Formats:
    """A running server and what its native API says."""

    server: RunningServer
    http: httpx.Client

    def post(self, path: str, body: Any, **headers: str) -> Any:
        """The JSON of an answer that is none but 200."""
        answer = self.http.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def native(self, prompt: Any, *responses: str, model: str = "tiny") -> list[float]:
        """The native API's scores."""
        items = [{"prompt": prompt, "responses": list(responses)}]
        reply = self.post("/v1/score", {"model": model, "items": items})
        return [score["score"] for score in reply["items"][0]["scores"]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats") / "tiny"
    return tiny_checkpoint(folder, "llama", id2label={0: LABEL}, label2id={LABEL: 0})


@pytest.fixture(scope="session")
def formats(checkpoint: Path) -> Iterator[Formats]:
    with (
        running_server({"tiny": checkpoint}, dtype="float32") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        yield Formats(server, http)
