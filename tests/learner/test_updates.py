"""Which updates are made, and how large they are: nothing to learn, warm-ups, clipping."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.learner.support import (
    all_samples,
    make_learner,
    same,
    settings,
    weights,
    wild_groups,
)

from guerdon.trainer.common.services.types import Group
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.settings import (
    GRPOSettings,
    OnlineDPOSettings,
    OnlineRFTSettings,
    PPOSettings,
    RLOOSettings,
    RunSettings,
)

Policy = Callable[[str], Path]


def with_rewards(groups: list[Group], *of_groups: float | None) -> list[Group]:
    """All completions of a prompt get its number, or other ones each where that is None."""
    for group, reward in zip(groups, of_groups, strict=True):
        for sample in group.samples:
            sample.reward = float(sample.index) if reward is None else reward
            sample.finished = True
    return groups


def passes_with_gradient(learner: Learner) -> list[int]:
    """Grows by one number for each forward pass that a backward pass follows."""
    seen: list[int] = []
    learner.module.register_forward_hook(
        lambda *_: seen.append(1) if torch.is_grad_enabled() else None
    )
    return seen


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (GRPOSettings, {"kl_coef": 0.1, "entropy_coef": 0.1, "kl_target": 1.0}),
        (RLOOSettings, {"kl_in": "loss", "reward_scale": "running", "kl_target": 1.0}),
        (OnlineRFTSettings, {"threshold": 1.5}),
        (OnlineDPOSettings, {}),
    ],
)
def test_a_step_without_an_advantage_moves_nothing(
    policy: Policy, kind: type[RunSettings], values: dict[str, Any]
) -> None:
    """No update, so no momentum of the step before, no decay, and no pass with gradients."""
    run = settings(kind, weight_decay=0.1, lr=1e-2, **values)
    learner = make_learner(policy("llama"), run)
    assert learner.step(with_rewards(wild_groups(2, 3), None, None))["skipped_updates"] == 0
    before, moments = weights(learner), deepcopy(learner.optimizer.optimizer.state_dict())
    beta = learner.algorithm.state_dict().get("kl")
    seen = passes_with_gradient(learner)
    row = learner.step(with_rewards(wild_groups(2, 3), 1.0, -1.0))
    assert row["skipped_updates"] == 1
    assert row["grad_norm"] == 0.0
    assert not seen
    assert same(before, weights(learner))
    assert str(learner.optimizer.optimizer.state_dict()) == str(moments)
    assert learner.algorithm.state_dict().get("kl") == beta
    assert learner.version == 3  # it counts, and is published, all the same
    said = {
        OnlineRFTSettings: "a step accepted no completion",
        OnlineDPOSettings: "a step made no preference pair",
    }.get(kind, "too easy or too hard")
    assert said in learner.algorithm.warning(row)
    assert learner.step(with_rewards(wild_groups(2, 3), None, 0.0))["skipped_updates"] == 0
    assert not same(before, weights(learner))


def test_a_minibatch_without_an_advantage_moves_nothing(policy: Policy) -> None:
    run = settings(GRPOSettings, minibatches=2, epochs=3, lr=1e-3)
    learner = make_learner(policy("llama"), run)
    seen = passes_with_gradient(learner)
    row = learner.step(with_rewards(wild_groups(2, 3), None, 1.0))
    assert row["skipped_updates"] == 3
    assert len(seen) == 3
    assert row["grad_norm"] > 0
    assert "too easy or too hard" in learner.algorithm.warning(row)


def test_a_value_model_learns_of_equal_rewards(policy: Policy) -> None:
    learner = make_learner(policy("llama"), settings(PPOSettings))
    row = learner.step(with_rewards(wild_groups(2, 3), 1.0, 1.0))
    assert row["skipped_updates"] == 0
    assert not learner.algorithm.warning(row)


def test_the_policy_begins_its_own_warm_up_after_the_value_models(policy: Policy) -> None:
    run = settings(
        PPOSettings,
        value_warmup=2,
        warmup_steps=2,
        steps=6,
        lr_schedule="linear",
        lr=1e-3,
        value_lr=1e-2,
        kl_coef=0.3,
        kl_target=1e-3,
        kl_horizon=1.0,
    )
    learner = make_learner(policy("llama"), run)
    rows = [learner.step(wild_groups(2, 3, seed=seed)) for seed in range(6)]
    assert [row["lr"] for row in rows] == pytest.approx([0, 0, 5e-4, 1e-3, 1e-3, 5e-4])
    of_values = [5e-3, 1e-2, 1e-2, 7.5e-3, 5e-3, 2.5e-3]
    assert [row["value_lr"] for row in rows] == pytest.approx(of_values)
    betas = [row["kl_coef"] for row in rows]
    assert betas[0] == betas[1] == betas[2] == 0.3, "β stays while the policy may not move"
    assert betas[3] != 0.3


def test_policy_and_value_model_are_clipped_each_by_its_own_norm(policy: Policy) -> None:
    """A value loss a million times larger leaves the policy's update as it was."""
    found = []
    for coefficient in (0.1, 1e5):
        run = settings(PPOSettings, value="own", value_coef=coefficient, max_grad_norm=1e-3)
        learner = make_learner(policy("llama"), run)
        row = learner.step(wild_groups(3, 3))
        moments = learner.optimizer.optimizer.state
        groups = learner.optimizer.optimizer.param_groups
        steps = [
            torch.cat([moments[p]["exp_avg"].flatten() for p in group["params"] if p in moments])
            for group in groups
        ]
        found.append((row, steps))
    (small, ours), (large, theirs) = found
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-9)
    assert float(ours[0].norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert large["grad_norm"] == pytest.approx(small["grad_norm"], rel=1e-4)
    assert large["value_grad_norm"] == pytest.approx(1e6 * small["value_grad_norm"], rel=1e-3)
    assert float(theirs[1].norm()) == pytest.approx(0.1 * 1.0, rel=1e-3)


@pytest.mark.parametrize("value", ["head", "own"])
def test_values_begin_at_the_mean_return(policy: Policy, value: str) -> None:
    """Whatever its scale; a resumed run does not begin again."""
    run = settings(PPOSettings, value=value, reward_scale="running", value_warmup=1)
    learner, groups = make_learner(policy("llama"), run), wild_groups(4, 4)
    for sample in all_samples(groups):
        sample.reward += 100.0
    first = learner.step(groups)
    assert first["value"] == pytest.approx(first["returns"], abs=1e-4)
    assert first["returns"] > 10
    assert first["value_loss"] < first["returns"]
    resumed = make_learner(policy("llama"), run)
    resumed.load_state(learner.state())
    assert resumed.step(groups) == learner.step(groups)


def test_a_linear_value_head_soon_explains_what_its_states_tell(policy: Policy) -> None:
    """The reward is a function of the prompt; the policy waits, so that alone is to be learnt."""
    run = settings(PPOSettings, value_warmup=12, steps=13, kl_coef=0.0, value_lr=1e-3)
    learner = make_learner(policy("llama"), run)
    prompts = wild_groups(8, 6, seed=1)
    found = []
    for seed in range(12):
        groups = wild_groups(8, 6, seed=10 + seed)
        for uid, (group, like) in enumerate(zip(groups, prompts, strict=True)):
            group.task = like.task
            for sample in group.samples:
                sample.prompt_ids_P = like.task.prompt_ids_P
                sample.reward = -3.0 + 1.5 * (uid % 2)
        found.append(learner.step(groups)["explained_variance"])
    print([round(value, 2) for value in found])
    assert found[0] == pytest.approx(0.0, abs=1e-6)
    assert found[-1] > found[3] > found[1] > 0
    assert min(found[-3:]) > 0.1
