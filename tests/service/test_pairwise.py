"""A pairwise model over sockets: Rank by gRPC, HTTP, client and command; never Score."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tests.support import hub
from tests.support.command import GUERDON, environment, read_rows, write_jsonl
from tests.support.pairrm import Published

from guerdon.client import AsyncRewardClient, FailedPrecondition, InvalidArgument, Item
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import RewardModel
from guerdon.v1 import reward_pb2

from .conftest import Harness, start_server
from .fake import FakeLoader
from .messages import item, prompt, response, score_request

PROMPT, ANSWERS = "What is rain?", ["Water that falls.", "½ a cloud,\n\n I think", "Rome!", ""]


class RealLoader(FakeLoader):
    """Loads what is there."""

    def __call__(self, path: str, name: str, check: Callable[[], None]) -> RewardModel:
        torch.set_num_threads(1)
        return load_model(path, name=name, settings=EngineSettings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.pairrm(tmp_path_factory.mktemp("pairrm"))


@pytest.fixture
async def paired(folder: Path) -> AsyncIterator[Harness]:
    """Its batches hold five comparisons, so that a ranking is computed in parts."""
    async with start_server(
        RealLoader(), models={"m": str(folder)}, batching={"max_batch_sequences": 5}
    ) as run:
        yield run


def rank_request(**more: object) -> reward_pb2.RankRequest:
    candidates = [response(answer) for answer in ANSWERS]
    return reward_pb2.RankRequest(
        model="m",
        prompt=prompt(PROMPT),
        candidates=candidates,
        **more,  # type: ignore[arg-type]
    )


async def test_rank_gives_the_published_scores(paired: Harness, folder: Path) -> None:
    wanted = Published(folder).scores(PROMPT, ANSWERS)
    reply = await paired.rewards.Rank(rank_request())
    order = [candidate.index for candidate in reply.ranking]
    assert order == np.argsort(-wanted, kind="stable").tolist()
    found = [candidate.score.score for candidate in reply.ranking]
    np.testing.assert_allclose(found, wanted[order], atol=1e-4)
    assert reply.info.revision == paired.server.registry.resolve("m").info.revision
    best = await paired.rewards.Rank(
        rank_request(
            top_n=1, options=reward_pb2.ScoreOptions(activation=reward_pb2.ACTIVATION_SIGMOID)
        )
    )
    (first,) = best.ranking
    assert first.index == order[0]
    assert first.score.score == pytest.approx(1 / (1 + np.exp(-wanted.max())), abs=1e-4)
    body = {"model": "m", "prompt": PROMPT, "candidates": ANSWERS}
    spoken = (await paired.http.post("/v1/rank", json=body)).json()["ranking"]
    assert [candidate["index"] for candidate in spoken] == order
    info = await paired.rewards.GetModel(reward_pb2.GetModelRequest(model="m"))
    assert info.model.kind == reward_pb2.MODEL_KIND_PAIRWISE
    assert info.model.ranks_only
    assert await paired.metric(
        f'guerdon_sequences_total{{class="online",model="m",revision="{reply.info.revision[:12]}"}}'
    ) == 3 * len(ANSWERS)


async def test_score_is_refused_everywhere(paired: Harness) -> None:
    words = "model 'm' compares answers with each other and has no score for one: rank them instead"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await paired.rewards.Score(score_request(item(PROMPT, *ANSWERS)))
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.value.details() == words
    async with AsyncRewardClient(f"127.0.0.1:{paired.ports.port}") as client:
        with pytest.raises(FailedPrecondition):
            await client.score("m", [Item(PROMPT, ANSWERS)])
        (result,) = [r async for r in client.score_stream("m", [Item(PROMPT, ANSWERS)])]
        assert isinstance(result.error, FailedPrecondition)
        with pytest.raises(InvalidArgument, match="candidates: must be two or more"):
            await client.rank("m", PROMPT, ["only"])
    body = {"model": "m", "items": [{"prompt": PROMPT, "responses": ANSWERS}]}
    spoken = await paired.http.post("/v1/score", json=body)
    assert spoken.json()["error"] == {"code": "FAILED_PRECONDITION", "message": words}


async def test_more_comparisons_than_the_queue_holds_are_refused(folder: Path) -> None:
    models = {"m": str(folder)}
    async with start_server(
        RealLoader(), models=models, queue={"max_queued_tokens": 300}
    ) as harness:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await harness.rewards.Rank(rank_request())
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(error.value.details()).startswith("candidates: ")
        request = rank_request()
        del request.candidates[2:]
        assert len((await harness.rewards.Rank(request)).ranking) == 2


async def test_the_commands(paired: Harness, folder: Path, tmp_path: Path) -> None:
    published = Published(folder)
    rows = [{"prompt": f"{PROMPT} {n}", "responses": ANSWERS[: 2 + n % 3]} for n in range(20)]
    rows.append({"prompt": "one", "responses": ["only"]})
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    done = await command(paired, "rank", source, "--on-error", "skip")
    assert done.returncode == 4, done.stderr
    found = read_rows(done.stdout)
    for row, asked in zip(found[:-1:4], rows[:-1:4], strict=True):
        wanted = published.scores(str(asked["prompt"]), asked["responses"])
        np.testing.assert_allclose(row["scores"], wanted, atol=1e-4)
        assert row["ranking"] == np.argsort(-wanted, kind="stable").tolist()
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert "must be two or more" in found[-1]["error"]
    done = await command(paired, "score", source)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().strip() == (
        "guerdon: The model m compares answers with each other and has no score for one: use "
        "`guerdon rank`."
    )


async def command(
    harness: Harness, *args: object, model: str = "m"
) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(
        subprocess.run,
        [*GUERDON, *map(str, args), "--model", model],
        capture_output=True,
        env=environment(GUERDON_SERVER=f"127.0.0.1:{harness.ports.port}"),
        timeout=120,
        check=False,
    )
