"""The reward of verifiers' tasks, in verifiers' own scoring, against a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.support.packages import python_with, run_program
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import RewardClient

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "verifiers.md"
TASKS = Path(__file__).with_name("verifiers_task.py")
TASKSET = """
import verifiers.v1 as vf

__all__ = ["MyTaskset"]


class MyTask(vf.Task[vf.TaskData]):
    pass


class MyTaskset(vf.Taskset[MyTask]):
    def load(self):
        yield MyTask(vf.TaskData(prompt="What is rain?"), self.config.task)
"""
DOWN = """
from guerdon.client import Retry
down = RewardFunction(AsyncRewardClient("127.0.0.1:1", retry=Retry(attempts=1)), "helpful")
"""


def examples(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verifiers_gets_the_scores_of_the_native_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = python_with(tmp_path / "verifiers", "verifiers==0.4.0")
    folder = tiny_checkpoint(tmp_path / "m", "llama", seed=5)
    (tmp_path / "my_taskset.py").write_text(TASKSET)
    (tmp_path / "settings.toml").write_text(examples("toml"))
    with running_server({"helpful": folder}, dtype="float32") as server:
        rewards_module = examples("python").replace("localhost:50051", server.address) + DOWN
        (tmp_path / "my_rewards.py").write_text(rewards_module)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
        printed = run_program(python, TASKS, tmp_path / "settings.toml").splitlines()
        with RewardClient(server.address) as rewards:
            scored = json.loads(printed[0])
            native = [
                rewards.score_one("helpful", turns[:-1], [turns[-1]["content"]]).values[0]
                for turns, *_ in scored
            ]
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
