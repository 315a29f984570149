"""Unmodified clients from their own packages, against a real server that wants a token."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from tests.support.packages import python_with, run_program
from tests.support.server import running_server

from .conftest import ANSWER, QUESTION
from .test_formats import close, sigmoid

PROGRAM = Path(__file__).with_name("real_clients.py")
PACKAGES = (
    "openai==3.57.0",
    "cohere==5.21.1",
    "langchain-cohere==0.6.0",
    "llama-index-postprocessor-cohere-rerank==0.10.0",
)
DOCUMENTS = ["Rain.", ANSWER, "Mud"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_openai_cohere_langchain_and_llama_index(checkpoint: Path, tmp_path: Path) -> None:
    python = python_with(tmp_path / "clients", *PACKAGES)
    environment = {"GUERDON_TOKEN": "of-the-clients"}
    with running_server({"tiny": checkpoint}, environment=environment, dtype="float32") as server:
        arguments = (server.url, "of-the-clients", QUESTION, *DOCUMENTS)
        found = json.loads(run_program(python, PROGRAM, *arguments))
        with httpx.Client(base_url=server.url, auth=("", "of-the-clients")) as http:
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
