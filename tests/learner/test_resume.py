"""A learner's state holds all that its next steps depend on, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learner.resumed import CASES, go_on, new_learner, write_resumed
from tests.learner.support import same
from tests.support.forked import Child

from guerdon.trainer.rl.state_files import read_tree, write_tree

Policy = Callable[[str], Path]


def equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Bit for bit: losses, weights, β, running statistics, and what will be drawn."""
    assert first["metrics"] == second["metrics"]
    assert same(first["weights"], second["weights"])
    assert first["algorithm"] == second["algorithm"]
    assert torch.equal(first["rng"], second["rng"])


@pytest.mark.parametrize("case", list(CASES))
def test_a_resumed_learner_goes_on_bit_for_bit(policy: Policy, tmp_path: Path, case: str) -> None:
    """After every one of the first steps, by a new learner."""
    unbroken = new_learner(policy("llama"), case)
    for step in range(3):
        go_on(unbroken, range(step, step + 1))
        write_tree(tmp_path / str(step), unbroken.state())
        ahead = go_on(unbroken, range(step + 1, step + 2))
        resumed = new_learner(policy("llama"), case)
        resumed.load_state(read_tree(tmp_path / str(step)))
        assert resumed.version == step + 2
        equal(go_on(resumed, range(step + 1, step + 2)), ahead)
        unbroken.load_state(read_tree(tmp_path / str(step)))


@pytest.mark.slow
def test_another_process_goes_on_bit_for_bit(policy: Policy, tmp_path: Path) -> None:
    right = {}
    for case in CASES:
        unbroken = new_learner(policy("llama"), case)
        go_on(unbroken, range(1))
        write_tree(tmp_path / case, unbroken.state())
        right[case] = go_on(unbroken, range(1, 4))
    threads = torch.get_num_threads()
    other = Child(tmp_path / "log", write_resumed, policy("llama"), tmp_path, threads)
    assert other.wait() == 0, other.log()
    for case, expected in right.items():
        equal(torch.load(tmp_path / f"{case}.pt"), expected)


def test_a_state_without_moments_would_be_seen(policy: Policy, tmp_path: Path) -> None:
    """The comparison has teeth: a resume that forgets the optimiser parts at once."""
    unbroken = new_learner(policy("llama"), "ppo")
    go_on(unbroken, range(1))
    write_tree(tmp_path / "state", unbroken.state())
    ahead = go_on(unbroken, range(1, 2))
    resumed = new_learner(policy("llama"), "ppo")
    resumed.load_state(read_tree(tmp_path / "state"))
    resumed.optimizer.optimizer.state.clear()
    assert not same(go_on(resumed, range(1, 2))["weights"], ahead["weights"])
