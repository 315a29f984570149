"""Unmodified clients from their own packages, against a real server that wants a token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.packages import python_with, run_program
from tests.support.server import RunningServer, running_server

from .conftest import ANSWER, PROMPT, QUESTION, Formats
from .test_formats import close, sigmoid

PACKAGES = (
    "openai==3.57.0",
    "cohere==5.21.1",
    "langchain-cohere==0.6.0",
    "llama-index-postprocessor-cohere-rerank==0.10.0",
    "llama-index-postprocessor-tei-rerank==0.6.0",
    "huggingface-api-haystack[grpc]==3.1.0",
)
TRAINERS = ("openrlhf==0.11.2", "pylatexenc==2.10", "miles-rl==0.0.2", "ray==2.60.0")
DOCUMENTS = ["Rain.", ANSWER, "Mud"]
TOKEN = "of-the-clients"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has all clients."""
    return python_with(tmp_path_factory.mktemp("clients"), *PACKAGES)


@pytest.fixture(scope="module")
def guarded(checkpoint: Path) -> Iterator[RunningServer]:
    """A server that wants a token."""
    environment = {"GUERDON_TOKEN": TOKEN}
    with running_server({"tiny": checkpoint}, environment=environment, dtype="float32") as server:
        yield server


def run(python: Path, program: str, *arguments: str) -> Any:
    """What a program beside this file prints, as JSON."""
    return json.loads(run_program(python, Path(__file__).with_name(program), *arguments))


def test_openai_cohere_langchain_and_llama_index(python: Path, guarded: RunningServer) -> None:
    found = run(python, "real_clients.py", guarded.url, TOKEN, QUESTION, *DOCUMENTS)
    with httpx.Client(base_url=guarded.url, auth=("", TOKEN)) as http:
        items = [{"prompt": QUESTION, "responses": DOCUMENTS}]
        reply = http.post("/v1/score", json={"model": "tiny", "items": items}).json()
        texts = http.post("/pooling", json={"input": DOCUMENTS}).json()
    scores = [sigmoid(score["score"]) for score in reply["items"][0]["scores"]]
    best = sorted(range(3), key=lambda place: -scores[place])[:2]
    ranked = [[DOCUMENTS[place], close(scores[place])] for place in best]
    assert found["cohere v1"] == found["cohere v2"] == [close(score) for score in scores]
    assert found["langchain"] == found["llama_index"] == ranked
    assert "there is no model 'other'" in found["cohere error"]
    assert found["openai models"] == ["tiny"]
    assert found["openai embeddings"] == [[close(entry["data"][0])] for entry in texts["data"]]


def test_haystack_and_llama_index_for_text_embeddings_inference(
    python: Path, guarded: RunningServer, formats: Formats
) -> None:
    open_to_all = formats.server.address
    found = run(python, "tei_clients.py", guarded.url, TOKEN, open_to_all, QUESTION, *DOCUMENTS)
    scores = dict(zip(DOCUMENTS, formats.native(QUESTION, *DOCUMENTS), strict=True))
    best = sorted(DOCUMENTS, key=lambda text: -scores[text])
    for client in ("haystack", "haystack over gRPC"):
        ranked, error = found[client]
        assert ranked == [[text, close(scores[text])] for text in best]
        assert "texts[3]: is too long" in error
    assert found["llama_index"] == [[text, close(sigmoid(scores[text]))] for text in best]


def test_remote_rewards_of_openrlhf_and_miles(
    checkpoint: Path, guarded: RunningServer, formats: Formats, tmp_path: Path
) -> None:
    """Their own code, without the packages for GPUs that it does not import for this."""
    python = python_with(tmp_path / "trainers", *TRAINERS, dependencies=False)
    where = guarded.url.removeprefix("http://")
    answer = f"{ANSWER}<|im_end|>"
    found = run(python, "trainer_clients.py", where, TOKEN, str(checkpoint), PROMPT, answer)
    (score,) = formats.native(QUESTION, ANSWER)
    assert found["openrlhf"] == {
        "reward": [close(score)],
        "scores": [close(sigmoid(score))],
        "extra_logs": {"reward": [close(score)]},
    }
    assert found["miles"] == close(score)
