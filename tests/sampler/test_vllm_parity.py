"""The trainer's log-probabilities of what vLLM drew: on policy, the importance ratio is 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from guerdon.sampler.types import Canary, Completion, PublishOrder
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.settings import GRPOSettings

pytest.importorskip("vllm")

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engine import Served

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


def new_learner(folder: Path, temperature: float) -> Learner:
    """In float32, with a step large enough to be seen."""
    settings = GRPOSettings(
        policy=str(folder),
        sampler="a:1",
        prompts="p",
        eval_prompts="p",
        output="o",
        verifier=("exact",),
        dtype="float32",
        prompts_per_step=3,
        samples_per_prompt=8,
        max_tokens=64,
        temperature=temperature,
        lr=1e-3,
    )
    return Learner(settings, build(settings), folder)


async def publish(served: Served, learner: Learner) -> None:
    """The learner's own weights, with its own canaries."""
    weights = learner.weights("float32", [np.arange(7, 40, dtype=np.int32)])
    tensors = {
        spec.name: tensor.detach().clone()
        for spec, tensor in zip(weights.specs, weights.tensors(), strict=True)
    }
    version = served.engine.version + 1
    own = tuple(
        Canary(np.asarray(c.token_ids, np.int32), np.asarray(c.logprobs, np.float32))
        for c in weights.canaries
    )
    assert own
    staging, staged = await served.stage(tensors)
    answer = await served.engine.publish(
        staged, PublishOrder(version=version, reset=False, canaries=own, mean_tolerance=0.0)
    )
    staging.close()
    assert answer.canary_max_difference < 1e-4
    served.tensors = served.history[version] = tensors


def group_of(uid: int, prompt: Any, drawn: list[Completion]) -> Group:
    task = Task(uid, PromptRow(uid, ()), prompt)
    rewards = np.random.default_rng(uid).normal(size=len(drawn))
    samples = [
        Sample(
            uid,
            c.index,
            prompt,
            c.token_ids,
            c.logprobs,
            np.full(len(c.token_ids), c.spans[0].version, np.int32),
            True,
            "x",
            float(rewards[i]),
        )
        for i, c in enumerate(drawn)
    ]
    return Group(task, samples)


async def sampled(served: Served, temperature: float) -> list[Group]:
    rng = np.random.default_rng(3)
    groups = []
    for uid, length in enumerate((4, 9, 17)):
        prompt = rng.integers(7, 350, size=length).astype(np.int32)
        drawn = await served.draw(prompt, n=8, max_tokens=48, temperature=temperature)
        groups.append(group_of(uid, prompt, drawn))
    return groups


def parted(learner: Learner, groups: list[Group]) -> tuple[float, float]:
    """Largest difference of log-probabilities, and the mean importance ratio."""
    samples = [sample for group in groups for sample in group.samples]
    counts = [sample.tokens for sample in samples]
    offsets = [0, *np.cumsum(counts)[:-1].tolist()]
    own = learner._logprobs(learner._pack(samples, offsets), sum(counts)).detach().double().numpy()
    behaviour = np.concatenate([sample.behaviour_logprobs_T for sample in samples])
    difference = own - behaviour
    return float(np.abs(difference).max()), float(np.exp(difference).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_the_learner_agrees_with_the_sampler_before_and_after_a_step(
    served: Served, temperature: float
) -> None:
    learner = new_learner(served.folder, temperature)
    await publish(served, learner)
    groups = await sampled(served, temperature)
    largest, ratio = parted(learner, groups)
    assert largest < 1e-3
    assert abs(ratio - 1) < 0.005
    learner.step(groups)
    # Off policy now, until the new weights are published.
    assert parted(learner, groups)[0] > 1e-2
    await publish(served, learner)
    largest, ratio = parted(learner, await sampled(served, temperature))
    assert largest < 1e-3
    assert abs(ratio - 1) < 0.005
