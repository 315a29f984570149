"""Whole runs, in which a service or the trainer is killed by SIGKILL."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.runs.processes import Service, reward_service, sampler_service
from tests.runs.whole import STEPS, Finished, Recipe, finished
from tests.support.ports import free_port

from guerdon.cli.errors import ExitCode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("eta", [0, 2])
def test_the_sampler_is_killed(policy: Path, rewards: Service, tmp_path: Path, eta: int) -> None:
    deaths = ["draw:4", "stage:1", "draw:13", "switch:2", "switched:2", "stage:3"]
    with sampler_service(tmp_path, policy, deaths) as sampler:
        recipe = Recipe(policy, sampler, rewards, "--max-staleness", str(eta))
        run = finished(recipe, tmp_path)
        assert sampler.unused == []
        assert sampler.kills == len(deaths)
    run.check_books()
    run.check_rewards(rewards)
    assert max(row["staleness_max"] for row in run.steps) <= eta
    assert sum(run.summary["faults"].values()) >= 1


@pytest.mark.parametrize("eta", [0, 2])
def test_the_reward_server_is_killed(
    policy: Path, judge: Path, sampler: Service, tmp_path: Path, eta: int
) -> None:
    with reward_service(tmp_path, m=judge) as rewards:
        recipe = Recipe(policy, sampler, rewards, "--max-staleness", str(eta))
        child = recipe.start(tmp_path)
        metrics = tmp_path / "run" / "metrics.jsonl"
        for lines in (0, 2, 4):  # as it is evaluated, and in the midst of steps
            while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
                assert child.running, child.log()
                time.sleep(0.002)
            rewards.child.kill()
            while rewards.kills <= lines // 2 or not rewards.child.running:
                time.sleep(0.01)
        assert child.wait() == 0, child.log()
        assert rewards.kills == 3
        run = Finished(tmp_path)
        run.check_books()
        run.check_rewards(rewards)


@pytest.mark.parametrize(
    "point",
    [
        "before-sample:3", "after-score:9", "after-batch:4", "after-learn:3", "before-publish:4",
        "after-publish:5", "before-save:2", "before-rename:4", "after-save:3", "before-final:1",
    ],
)  # fmt: skip
def test_the_trainer_is_killed_and_goes_on_bit_for_bit(
    point: str, unbroken: Finished, policy: Path, sampler: Service, rewards: Service, tmp_path: Path
) -> None:
    recipe = Recipe(policy, sampler, rewards, "--deterministic")
    child = recipe.start(tmp_path, dies=point)
    child.wait()
    assert child.killed, child.log()
    assert not (tmp_path / "run" / "summary.json").exists()
    run = finished(recipe, tmp_path, "--resume")
    run.check_books()
    assert run.numbers() == unbroken.numbers()
    assert run.samples == unbroken.samples
    files = [r.path / "final" / "model.safetensors" for r in (run, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_unbroken_run_is_right(unbroken: Finished, rewards: Service) -> None:
    unbroken.check_books()
    unbroken.check_rewards(rewards)
    assert len({row["loss"] for row in unbroken.steps}) == STEPS


@pytest.mark.parametrize("away", ["sampler", "rewards"])
def test_a_service_that_stays_away_ends_the_run_in_one_sentence(
    away: str, policy: Path, judge: Path, sampler: Service, rewards: Service, tmp_path: Path
) -> None:
    leave, back = threading.Event(), threading.Event()
    serving: Any = (
        sampler_service(tmp_path, policy)
        if away == "sampler"
        else reward_service(tmp_path, m=judge)
    )
    with serving as service:
        service.wait = lambda: (leave.set(), back.wait())
        both = (service, rewards) if away == "sampler" else (sampler, service)
        recipe = Recipe(policy, *both, "--patience", "1.5")
        child = recipe.start(tmp_path)
        checkpoints = tmp_path / "run" / "checkpoints"
        while not checkpoints.is_dir() or not any(checkpoints.iterdir()):
            assert child.running, child.log()
            time.sleep(0.005)
        service.child.kill()
        assert child.wait() == ExitCode.UNREACHABLE, child.log()
        last = child.log().strip().splitlines()[-1]
        assert last.startswith("guerdon: the ")
        assert "gave no answer for 1.5 seconds (--patience)" in last
        assert "Traceback" not in child.log()
        assert leave.is_set()
        back.set()
        while not service.child.running:
            time.sleep(0.01)
        run = finished(recipe, tmp_path, "--resume", "--patience", "60")
    run.check_books()


def test_nobody_there_from_the_first(policy: Path, rewards: Service, tmp_path: Path) -> None:
    class Nowhere:
        port = free_port()

    recipe = Recipe(policy, Nowhere(), rewards, "--patience", "1")  # type: ignore[arg-type]
    child = recipe.start(tmp_path)
    assert child.wait() == ExitCode.UNREACHABLE
    assert "the sampler at 127.0.0.1:" in child.log().strip().splitlines()[-1]
    assert not (tmp_path / "run" / "summary.json").exists()
