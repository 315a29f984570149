"""The learner: one gradient however the work is cut, little memory, exact resumes, hard stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.learner.support import (
    all_samples,
    apart,
    gradients,
    make_learner,
    most_apart,
    norm,
    plain_logprobs,
    same,
    settings,
    weights,
    wild_groups,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.rl.learner import policy as policy_module
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
EVERYTHING: dict[str, Any] = {"entropy_coef": 0.01, "kl_in": "loss", "temperature": 0.8}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PPOSettings, EVERYTHING),
        (PPOSettings, {"value": "own", "aggregation": "sequence"}),
        (GRPOSettings, {"lora_r": 4, "aggregation": "constant"}),
        (RLOOSettings, {}),
        (OnlineRFTSettings, {"threshold": 0.0}),
        (OnlineDPOSettings, {"pick": "all", "temperature": 0.8}),
        (OnlineDPOSettings, {"loss": "ipo", "unfinished": True, "lora_r": 4}),
    ],
    ids=["ppo", "ppo-own", "grpo-lora", "rloo", "online-rft", "online-dpo", "online-dpo-lora"],
)
def test_the_gradient_does_not_depend_on_how_the_tokens_are_cut(
    policy: Policy, kind: type[RunSettings], values: dict[str, Any]
) -> None:
    """Micro-batches, accumulation, packing, order. In float64 any wrong division would be seen."""
    groups = wild_groups(5, 4)
    run = settings(kind, micro_batch_tokens=10_000, **values)

    def found(cut: dict[str, Any], exact: bool) -> dict[str, Tensor]:
        cut = dict(cut)
        order, packed = cut.pop("order", 1), cut.pop("packed", True)
        learner = make_learner(policy("llama"), replace(run, **cut), exact=exact)
        if not packed:
            one_by_one(learner)
        return gradients(learner, groups[::order])

    cuts = [{"micro_batch_tokens": limit} for limit in (1, 17, 60)]
    others = [{"packed": False}, {"order": -1}, {"gradient_checkpointing": True}]
    for exact in (True, False):
        whole = found({}, exact)
        assert max(float(tensor.abs().max()) for tensor in whole.values()) > 1e-3
        for cut in [*cuts, *others]:
            other = found(cut, exact)
            assert most_apart(whole, other) < 1e-6 * max(1.0, norm(whole))
            # What is handed from the first pass to the second is in float32, and so are norms.
            assert apart(whole, other) < (2e-7 if exact else 1e-5)


def one_by_one(learner: Learner) -> None:
    """Without packing, by the attention of `transformers`."""
    parts = [learner.module.lm, learner.module.value_trunk]
    learner.module.packed = False
    if learner._reference is not None:
        learner._reference.packed = False
        parts.append(learner._reference.lm)
    for part in parts:
        if part is not None:
            part.set_attn_implementation("sdpa")


def test_a_gradient_of_other_tokens_would_be_seen(policy: Policy) -> None:
    """`apart` has teeth: one reward of twenty moves the gradient far beyond rounding."""
    groups = wild_groups(5, 4)
    run = settings(PPOSettings, **EVERYTHING)
    whole = gradients(make_learner(policy("llama"), run), groups)
    groups[2].samples[1].reward += 0.1
    other = gradients(make_learner(policy("llama"), run), groups)
    assert apart(whole, other) > 1e-3
    assert most_apart(whole, other) > 1e-4


class Sizes(TorchDispatchMode):
    """Rows of the largest tensor that is as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, math.prod(tensor.shape[:-1]))
        return found


def test_no_logits_of_a_whole_batch_are_ever_made(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither forward nor backward, nor are a chunk's kept between the two."""
    monkeypatch.setattr(policy_module, "CHUNK", 80)  # more than the model is wide
    learner = make_learner(policy("llama"), settings(PPOSettings, **EVERYTHING))
    vocabulary = learner.module.lm.config.vocab_size
    groups = wild_groups(12, 6)
    assert sum(sample.tokens for sample in all_samples(groups)) > 200
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1 and tensor.shape[-1] == vocabulary:
            kept.append(tuple(tensor.shape))
        return tensor

    (row, *_) = learner._pack(all_samples(groups), list(range(0, 10_000, 100))[: 12 * 6])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learner.module(row)
    assert not kept
    with Sizes(vocabulary) as sizes:
        learner.step(groups)
    assert sizes.rows == 80


def test_no_token_is_computed_for_padding(policy: Policy) -> None:
    """What goes through the trunk is each prompt once, and each response but its last token."""
    learner = make_learner(policy("llama"), settings(GRPOSettings, kl_coef=0.0))
    groups = wild_groups(6, 5)
    seen = []
    learner.module.lm.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    learner.step(groups)
    prompts = sum(len(group.task.prompt_ids_P) for group in groups)
    responses = sum(sample.tokens - 1 for sample in all_samples(groups))
    assert sum(seen) == 2 * (prompts + responses)  # π_prox, then the update


def test_only_the_value_model_learns_while_it_warms_up(policy: Policy) -> None:
    run = settings(PPOSettings, value_warmup=1, lr=1e-3, weight_decay=0.1)
    learner = make_learner(policy("llama"), run)
    before = weights(learner)
    learner.step(wild_groups(3, 3))
    after = weights(learner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"value_head.weight", "value_head.bias", "value_offset"}
    learner.step(wild_groups(3, 3, seed=1))
    assert not torch.equal(after["lm.model.norm.weight"], weights(learner)["lm.model.norm.weight"])


def test_values_learn_the_returns(policy: Policy) -> None:
    run = settings(
        PPOSettings, value_warmup=60, steps=61, value_lr=3e-2, kl_coef=0.0, clip_value=0.0
    )
    learner = make_learner(policy("llama"), run)
    groups = wild_groups(4, 4)
    first = learner.step(groups)
    for _ in range(59):
        last = learner.step(groups)
    assert last["value_loss"] < 0.3 * first["value_loss"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nothing_is_learnt_from_what_is_not_finite(
    policy: Policy, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(policy("llama"), settings(RLOOSettings))
    groups = wild_groups(3, 3)
    learner.step(groups)
    before, moments = weights(learner), deepcopy(learner.optimizer.optimizer.state_dict())
    real = learner.algorithm.loss

    def bad(*args: Any) -> Any:
        parts = real(*args)
        if what == "loss":
            return replace(parts, sums=parts.sums | {"loss": torch.tensor(math.inf)})
        return replace(parts, loss=parts.loss * math.nan)

    with monkeypatch.context() as patched:
        patched.setattr(learner.algorithm, "loss", bad)
        with pytest.raises(DivergedError, match="at step 2: try a smaller --lr"):
            learner.step(groups)
    assert same(before, weights(learner))
    left = learner.optimizer.optimizer.state_dict()
    assert str(left) == str(moments)
    assert learner.version == 2
    assert math.isfinite(learner.step(groups)["grad_norm"])  # no gradient was left behind


def test_the_schedule_is_that_of_the_step(policy: Policy) -> None:
    """The rate that is logged is the one that the step was made with."""
    run = settings(GRPOSettings, lr=1e-3, steps=4, warmup_steps=2, lr_schedule="linear")
    learner = make_learner(policy("llama"), run)
    logged, used = [], []
    for seed in range(4):
        logged.append(learner.step(wild_groups(2, 2, seed=seed))["lr"])
        used.append(learner.optimizer.param_groups[0]["lr"])
    assert logged == used == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off(policy: Policy, checkpointing: bool) -> None:
    """GPT-2's config asks for it, and gradient checkpointing for training mode."""
    run = settings(GRPOSettings, gradient_checkpointing=checkpointing, micro_batch_tokens=10_000)
    groups = wild_groups(3, 3)
    learner = make_learner(policy("gpt2"), run)
    assert learner.module.lm.config.resid_pdrop > 0
    model = AutoModelForCausalLM.from_pretrained(policy("gpt2"), dtype=torch.float32).eval()
    seen: list[Tensor] = []
    real = learner.algorithm.loss

    def listen(micro: Any, logprobs_M: Tensor, *rest: Any) -> Any:
        seen.append(logprobs_M.detach())
        return real(micro, logprobs_M, *rest)

    learner.algorithm.loss = listen  # type: ignore[method-assign]
    learner.step(groups)
    (found,) = seen
    with torch.no_grad():
        parts = {s.response_ids_T.tobytes(): plain_logprobs(model, s) for s in all_samples(groups)}
    (row,) = learner._pack(all_samples(groups), _starts(groups))
    at = 0
    for block_tokens in _samples_of(row, groups):
        right = parts[block_tokens.tobytes()]
        torch.testing.assert_close(found[at : at + len(right)], right, rtol=0, atol=2e-5)
        at += len(right)


def _starts(groups: Any) -> list[int]:
    return np.cumsum([0, *(s.tokens for s in all_samples(groups))])[:-1].tolist()


def _samples_of(row: Any, groups: Any) -> list[Any]:
    by_start = dict(zip(_starts(groups), all_samples(groups), strict=True))
    return [by_start[at].response_ids_T for at in row.tokens_M.tolist() if at in by_start]


@pytest.mark.parametrize("lora_r", [0, 4])
def test_the_divergence_begins_at_zero(policy: Policy, lora_r: int) -> None:
    """In bfloat16 too: the reference is rounded as the policy is."""
    run = settings(GRPOSettings, dtype="bfloat16", lora_r=lora_r, lr=1e-2)
    learner = make_learner(policy("llama"), run)
    groups = wild_groups(3, 3)
    assert all(kl == 0.0 for row in learner.divergence(groups) for kl in row)
    learner.step(groups)
    learner.step(groups)
    assert any(kl != 0.0 for row in learner.divergence(groups) for kl in row)


def test_on_policy_at_weight_parity_nothing_is_corrected(policy: Policy) -> None:
    """Behaviour log-probabilities of `transformers` at a temperature: w and ρ are 1."""
    run = settings(GRPOSettings, temperature=0.6)
    groups = wild_groups(6, 4)
    model = AutoModelForCausalLM.from_pretrained(policy("llama"), dtype=torch.float32).eval()
    with torch.no_grad():
        for sample in all_samples(groups):
            sample.behaviour_logprobs_T = plain_logprobs(model, sample, 0.6).numpy()
    metrics = make_learner(policy("llama"), run).step(groups)
    assert metrics["mismatch_kl"] == pytest.approx(0.0, abs=1e-8)
    assert metrics["weight"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["ess"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)


def test_bfloat16_keeps_weights_and_moments_in_float32(policy: Policy) -> None:
    learner = make_learner(policy("llama"), settings(PPOSettings, dtype="bfloat16"))
    metrics = learner.step(wild_groups(3, 3))
    assert math.isfinite(metrics["loss"])
    assert {parameter.dtype for parameter in learner.module.parameters()} == {torch.float32}
    moments = learner.optimizer.optimizer.state.values()
    assert {moment["exp_avg"].dtype for moment in moments} == {torch.float32}


def test_a_step_makes_as_many_updates_as_were_asked_for(policy: Policy) -> None:
    """Every epoch takes every sample once, in minibatches of whole groups."""
    run = settings(PPOSettings, epochs=3, minibatches=2, prompts_per_step=5)
    learner = make_learner(policy("llama"), run)
    groups = wild_groups(5, 3)
    taken: list[list[int]] = []
    real = learner._update

    def listen(samples: Any, offsets: Any, chosen: list[int], *rest: Any) -> float:
        taken.append(chosen)
        return real(samples, offsets, chosen, *rest)

    learner._update = listen  # type: ignore[method-assign]
    learner.step(groups)
    assert len(taken) == 6
    for epoch in range(3):
        first, second = taken[2 * epoch : 2 * epoch + 2]
        assert sorted([*first, *second]) == list(range(15))
        assert not {i // 3 for i in first} & {i // 3 for i in second}
    assert len({tuple(part) for part in taken[::2]}) > 1  # dealt out anew
