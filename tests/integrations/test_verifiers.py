"""The reward of verifiers' tasks, in its own scoring and evaluations, against a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.support import gateway_before
from tests.support.formula_engine import text_of, tokens_of
from tests.support.packages import python_with, run_program
from tests.support.sampler_service import start_sampler
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import RewardClient

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "verifiers.md"
TASKS = Path(__file__).with_name("verifiers_task.py")
HARNESS = Path(__file__).with_name("verifiers_harness.py")
EVALS = Path(__file__).with_name("verifiers_evals.py")
TASKSET = """
import verifiers.v1 as vf

__all__ = ["MyTaskset"]


class MyTask(vf.Task[vf.TaskData]):
    pass


class MyTaskset(vf.Taskset[MyTask]):
    def load(self):
        for prompt in ("What is rain?", "Where does it come from?"):
            yield MyTask(vf.TaskData(prompt=prompt), self.config.task)
"""
DOWN = """
from guerdon.client import Retry
down = RewardFunction(AsyncRewardClient("127.0.0.1:1", retry=Retry(attempts=1)), "helpful")
"""


def examples(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has verifiers."""
    return python_with(tmp_path_factory.mktemp("verifiers"), "verifiers==0.4.0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("rewards") / "m", "llama", seed=5)
    with running_server({"helpful": folder}, dtype="float32") as server:
        yield server


@pytest.fixture
def settings(server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's settings; beside them are the modules that they name."""
    rewards_module = examples("python").replace("localhost:50051", server.address) + DOWN
    (tmp_path / "my_rewards.py").write_text(rewards_module)
    (tmp_path / "my_taskset.py").write_text(TASKSET)
    (tmp_path / "settings.toml").write_text(examples("toml"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{HARNESS.parent}", prepend=":")
    return tmp_path / "settings.toml"


def native_scores(server: RunningServer, conversations: list[list[dict[str, str]]]) -> list[float]:
    """The scores of the last turns, as the native client gets them."""
    with RewardClient(server.address) as rewards:
        return [
            rewards.score_one("helpful", turns[:-1], [turns[-1]["content"]]).values[0]
            for turns in conversations
        ]


def test_verifiers_gets_the_scores_of_the_native_client(
    python: Path, server: RunningServer, settings: Path
) -> None:
    printed = run_program(python, TASKS, settings).splitlines()
    scored = json.loads(printed[0])
    native = native_scores(server, [turns for turns, *_ in scored])
    assert len(set(native)) == 3
    for (_, names, score, weight, total), expected in zip(scored, native, strict=True):
        assert (names, weight) == (["helpful"], 0.5)
        assert score == pytest.approx(expected, abs=1e-4)
        assert total == pytest.approx(score / 2)
    reasons = (
        "tool_calls",
        "not the assistant's",
        "2 branches",
        "cannot conn",
    )
    assert len(printed) == 1 + len(reasons)
    for line, reason in zip(printed[1:], reasons, strict=True):
        assert line.startswith("[None]")
        assert reason in line


@dataclass(frozen=True)
class Evaluation:
    """How `vf-eval` is set, and what comes of it."""

    settings: str = ""
    """TOML that is added to the page's."""
    model: str = "policy:best-of-4"
    tasks: int = 1
    candidates: int = 4
    ranked: bool = True
    error: str = ""
    """What the traces' errors say, where there is no answer."""


EVALUATIONS = {
    "name": Evaluation(tasks=2),
    "header": Evaluation('[client.headers]\nx-guerdon-best-of = "5"\n', candidates=5),
    "body": Evaluation("[sampling]\nbest_of = 3\n", candidates=3),
    "object": Evaluation("[sampling.guerdon]\nbest_of = 2\n", "policy", candidates=2),
    "tools": Evaluation(
        '[env.agent.harness.env]\nSHOWS_A_TOOL = "1"\n', candidates=1, ranked=False
    ),
    "error": Evaluation("[sampling]\nbest_of = 0\n", candidates=0, error="best_of: is 0"),
}


async def test_evaluations_by_the_best_of_n_get_the_scores_of_the_native_client(
    python: Path,
    server: RunningServer,
    settings: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`vf-eval`, with the gateway as its policy, asked in every way that it can be set to."""
    token = tmp_path / "token"
    token.write_text("of-the-policy")
    monkeypatch.setenv("POLICY_TOKEN", "of-the-policy")
    async with start_sampler() as sampler:
        before = gateway_before(
            sampler,
            f"{server.address}/helpful",
            token_file=token,
            pass_to=f"{sampler.http.base_url}/v1",
            endpoint_model="formula",
        )
        async with before as gateway:
            url = f"{gateway.http.base_url}/v1"
            commands = [
                arguments(tmp_path, settings, name, evaluation, url)
                for name, evaluation in EVALUATIONS.items()
            ]
            program = (python, EVALS, json.dumps(commands))
            await asyncio.to_thread(run_program, *program)
        for name, evaluation in EVALUATIONS.items():
            (file,) = (tmp_path / "runs" / name).glob("*/traces.jsonl")
            lines = file.read_bytes().splitlines()
            traces = [trace for line in lines for trace in json.loads(line)["traces"]]
            assert len(traces) == evaluation.tasks
            for trace in traces:
                check(server, name, evaluation, trace)
        counts = [each.candidates * each.tasks for each in EVALUATIONS.values()]
        assert sampler.engine.behaviour.drawn == sum(counts)


def arguments(folder: Path, settings: Path, name: str, of: Evaluation, url: str) -> list[str]:
    """Those of the command for an evaluation."""
    own = folder / f"{name}.toml"
    own.write_text(f"{of.settings}\n{settings.read_text()}")
    given = {
        "--output-dir": folder / "runs" / name,
        "--model": of.model,
        "--select.limit": of.tasks,
        "--client.base-url": url,
        "--client.api-key-var": "POLICY_TOKEN",
        "--env.agent.harness.id": HARNESS.stem,
        "--env.agent.runtime.type": "subprocess",
    }
    flags = [str(word) for pair in given.items() for word in pair]
    return ["@", str(own), "--no-push", "--no-rich", *flags]


def check(server: RunningServer, name: str, of: Evaluation, trace: dict[str, Any]) -> None:
    """Compare a trace with the policy's formula and the native client."""
    if of.error:
        assert of.error in json.dumps(trace["errors"]), name
        assert not any(reward["score"] is not None for reward in trace["rewards"].values())
        return
    assert trace["errors"] == [], name
    question, answer = (node["message"] for node in trace["nodes"])
    ids = [len(word) for word in question["content"].split()]
    drawn = [text_of(tokens_of(ids, sample)) for sample in range(of.candidates)]
    scores = native_scores(server, [[question, said(text)] for text in drawn])
    best = max(range(of.candidates), key=scores.__getitem__) if of.ranked else 0
    assert answer["content"] == drawn[best], name
    reward = {"score": pytest.approx(scores[best], abs=1e-4), "weight": 0.5}
    assert trace["rewards"] == {"helpful": reward}, name


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
