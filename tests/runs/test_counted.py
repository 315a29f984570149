"""Outages of the services, in all parts of a step: the run misses nothing and counts each once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runs.processes import Service, reward_service, sampler_service
from tests.runs.whole import Finished, Recipe

from guerdon.cli.main import main
from guerdon.trainer.common.services.patience import Patience
from guerdon.trainer.common.services.rewards import ServedReward
from guerdon.trainer.rl.learner.learner import Learner

pytestmark = pytest.mark.slow


class Outages:
    """What the trainer, which runs in this process, sees of its services."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._seen = threading.Event()
        self._known: set[Patience] = set()
        whole = Patience.away

        def away(patience: Patience) -> None:
            self._known.add(patience)
            before = patience._away
            whole(patience)
            if not before:
                self._seen.set()

        monkeypatch.setattr(Patience, "away", away)

    def wait(self) -> None:
        """Until another one is seen."""
        assert self._seen.wait(60)
        self._seen.clear()

    def at_step(self, owner: Any, name: str, step: int, act: Callable[[], None]) -> None:
        """Before the first call of a method after so many steps, with no outage on, do this."""
        learn, method, left = Learner.step, getattr(owner, name), [step, 1]

        def counted(learner: Learner, groups: Any) -> Any:
            found = learn(learner, groups)
            left[0] -= 1
            return found

        def acting(mine: Any, *args: Any) -> Any:
            if left[0] <= 0 and left[1] and not any(patience._away for patience in self._known):
                left[1] = 0
                act()
            return method(mine, *args)

        self._patch.setattr(Learner, "step", counted)
        self._patch.setattr(owner, name, acting)


@pytest.fixture
def outages(monkeypatch: pytest.MonkeyPatch) -> Outages:
    return Outages(monkeypatch)


@pytest.mark.parametrize(("algorithm", "eta"), [("ppo", 0), ("grpo", 2)])
def test_a_sampler_that_is_killed_while_the_learner_learns_and_later(
    algorithm: str, eta: int, policy: Path, rewards: Service, tmp_path: Path, outages: Outages
) -> None:
    # The first one is killed by the test; the others as they draw, and at points of an update.
    deaths = ["", "draw:11", "stage:2", "switched:2", "switch:2"]
    with sampler_service(tmp_path, policy, deaths) as sampler:
        sampler.wait = outages.wait
        outages.at_step(Learner, "_apply", 1, lambda: sampler.child.kill())
        more = ["--max-staleness", str(eta)]
        recipe = Recipe(policy, sampler, rewards, *more, algorithm=algorithm)
        assert main(["train", *recipe.arguments(tmp_path)]) == 0
        assert sampler.kills == 5
    run = Finished(tmp_path)
    run.check_books()
    run.check_rewards(rewards)
    assert run.summary["faults"]["services"] == 5 == run.steps[-1]["faults"]
    # With overlap its weights may come as the next update, before anybody misses them.
    assert (0 if eta else 1) <= run.summary["faults"]["sampler_restarts"] <= 5
    assert run.summary["staleness_max"] <= eta


@pytest.mark.parametrize("eta", [0, 2])
def test_a_reward_server_that_is_killed_with_a_call_in_its_hands(
    eta: int, policy: Path, judge: Path, sampler: Service, tmp_path: Path, outages: Outages
) -> None:
    with reward_service(tmp_path, m=judge) as server:
        server.wait = outages.wait

        def kill_with_the_call() -> None:
            child = server.child
            child.freeze()  # it gets the call, and can't have answered
            threading.Timer(0.3, child.kill).start()

        outages.at_step(ServedReward, "score", 1, kill_with_the_call)
        if not eta:  # with overlap it would be scoring now
            outages.at_step(Learner, "_apply", 2, lambda: server.child.kill())
        outages.at_step(ServedReward, "score", 4, kill_with_the_call)
        recipe = Recipe(policy, sampler, server, "--max-staleness", str(eta))
        assert main(["train", *recipe.arguments(tmp_path)]) == 0
        assert server.kills == (2 if eta else 3)
        run = Finished(tmp_path)
        run.check_books()
        run.check_rewards(server)
    assert run.summary["faults"] == {"services": server.kills, "sampler_restarts": 0}
