"""The real command in a process of its own, with a real (tiny) checkpoint."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest
import torch
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from guerdon.v1 import reward_pb2, reward_pb2_grpc

from .messages import score_request

TEXTS = ("The capital of France is", " Paris.", " Rome, I am sorry.")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")


def formatted(asked: str, *answers: str) -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(
        prompt={"formatted_text": asked},  # type: ignore[arg-type]
        responses=[{"text": answer} for answer in answers],  # type: ignore[misc]
    )


def plain_scores(folder: Path, asked: str, *answers: str) -> list[float]:
    """One at a time, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for answer in answers:
        ids = tokenizer(asked, add_special_tokens=False).input_ids
        ids += tokenizer(answer, add_special_tokens=False).input_ids
        with torch.inference_mode():
            scores.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    return scores


@pytest.mark.slow
def test_scores_of_a_real_checkpoint_and_a_clean_end(checkpoint: Path) -> None:
    with running_server({"m": checkpoint}, dtype="float32") as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            reply = stub.Score(score_request(formatted(*TEXTS)), timeout=30)
        found = [score.score for score in reply.items[0].scores]
        assert found == pytest.approx(plain_scores(checkpoint, *TEXTS), abs=1e-4)
        body = {
            "model": "m",
            "items": [{"prompt": {"formatted_text": TEXTS[0]}, "responses": list(TEXTS[1:])}],
        }
        answer = httpx.post(f"{server.url}/v1/score", json=body).json()
        assert [s["score"] for s in answer["items"][0]["scores"]] == pytest.approx(found, abs=1e-5)
        assert server.stop() == 0
        assert "ready: m; gRPC on 127.0.0.1:" in server.log()
        assert "Traceback" not in server.log()
