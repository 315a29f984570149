"""Known answer 8: reward against staleness, the shape of AReaL's ablation (arXiv:2505.24298).

Step i learns from completions that the policy of step i − η drew. Plain PPO keeps the policy
near π_μ, so it can't leave what is η steps behind it, and learns slower the larger η is.
Decoupled PPO keeps it near π_prox, where it stands, and corrects for π_μ by w.

That w is right is shown by enumeration in test_gradients.py, not here: on a problem as small
as this, forgetting it costs no reward.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import mean

import pytest
import torch
from tests.maths.support import settings
from tests.maths.tree import Learner, Tree, Way, random_rewards, random_table

from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.settings import PPOSettings

TREE = Tree(vocabulary=3, depth=3)
STALENESS = (0, 1, 4, 8, 16)
STEPS = 60
SAMPLES = 256


def reached(staleness: int, way: Way, seed: int) -> float:
    """The exact mean reward after training, as a share of what there was to gain."""
    start, rewards_C = random_table(TREE, seed=1), random_rewards(TREE, seed=2)
    run = settings(PPOSettings, kl_coef=0.0, minibatches=4)
    learner = Learner(TREE, build(run), start, start, rewards_C, lr=0.05, seed=seed)
    groups_S = torch.arange(SAMPLES) // run.samples_per_prompt
    history = []
    for step in range(STEPS):
        history.append(learner.logits.detach().clone())
        behaviour = history[max(0, step - staleness)]
        drawn_S = TREE.draw(behaviour, SAMPLES, learner.generator)
        learner.step(drawn_S, groups_S, behaviour, way)
    before = float(TREE.logprobs(start).exp() @ rewards_C)
    after = float(TREE.logprobs(learner.logits.detach()).exp() @ rewards_C)
    return (after - before) / (float(rewards_C.max()) - before)


def curve(way: Way) -> list[float]:
    """Over three seeds, for each staleness."""
    return [mean(reached(staleness, way, seed) for seed in range(3)) for staleness in STALENESS]


@pytest.mark.slow
def test_plain_ppo_decays_with_staleness_and_decoupled_ppo_holds() -> None:
    plain, decoupled = curve("plain"), curve("decoupled")
    print("plain", [round(share, 3) for share in plain])
    print("decoupled", [round(share, 3) for share in decoupled])
    # On-policy they are the same algorithm: π_prox = π_μ.
    assert plain[0] == pytest.approx(decoupled[0], abs=1e-9)
    assert plain[0] > 0.99
    # From η = 1 on, each larger η costs plain PPO more.
    assert all(more < less - 0.01 for less, more in pairwise(plain[1:]))
    assert plain[-1] < 0.85
    # Decoupled PPO loses next to nothing of what there is to gain.
    assert min(decoupled) > 0.98
