"""What PPO, GRPO and RLOO share: shaped rewards, KL to the reference, and the clipped loss.

They differ in their advantages only, and PPO in its value model. β, the weight of KL, is fixed or
moved towards a target.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from guerdon.trainer.common.measuring.kl_estimate import kl_estimate
from guerdon.trainer.rl.learner.advantages import (
    Moments,
    RunningMoments,
    moments,
    shape_rewards,
    whiten,
)
from guerdon.trainer.rl.learner.algorithms.base import Algorithm, Prepared, Reduce, StepBatch
from guerdon.trainer.rl.learner.algorithms.measured import check, divergence, off_policy, token_mask
from guerdon.trainer.rl.learner.losses import (
    TokenLoss,
    entropy_bonus,
    kl_loss,
    ppo_loss,
    segment_sum,
    token_weights,
)
from guerdon.trainer.rl.settings import PolicyGradientSettings


class KLWeight:
    """β, which stays as it is set.

    Attributes:
        value: β of the step that comes.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def update(self, kl: float, samples: int) -> None:
        """Learn from a step.

        Args:
            kl: mean divergence of its completions, in nats.
            samples: how many there were, over all processes.
        """

    def state_dict(self) -> dict[str, Any]:
        """What changes: nothing, β is a setting."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""


class AdaptiveKL(KLWeight):
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·samples/horizon): Ziegler 2019, arXiv:1909.08593, 2.2.

    Args:
        value: the first β.
        target: nats per completion.
        horizon: completions over which β moves; a step that is longer counts as this long.
    """

    def __init__(self, value: float, *, target: float, horizon: float) -> None:
        super().__init__(value)
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Raise β where the divergence is over the target, lower it where it is under.

        Raises:
            ValueError: the divergence is not a finite number.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the divergence from the reference is {kl}")
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * min(samples / self._horizon, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """β as it is now."""
        return {"kl_coef": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.value = float(state["kl_coef"])


@dataclass(frozen=True, slots=True)
class Step:
    """What advantages are made of; names as in `StepBatch`."""

    lengths_S: Tensor
    groups_S: Tensor
    mask_N: Tensor
    rewards_S: Tensor
    """Shaped."""
    penalty_N: Tensor | None
    """β·k1 of each token, where KL is in the reward."""
    values_N: Tensor | None


@dataclass(frozen=True, slots=True)
class Advantages:
    """A, before whitening, and what the value model is to learn. [N]."""

    advantages_N: Tensor
    returns_N: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Clipped(Prepared):
    """What the clipped loss needs of each token."""

    behaviour: Tensor
    proximal: Tensor
    advantages: Tensor
    """float32. 0 where the mask is False."""
    reference: Tensor | None
    kl_coef: float
    """β of this step."""
    returns: Tensor | None
    """float32. The aims of the value model."""
    old_values: Tensor | None
    """float32. The values before the step."""
    policy_waits: bool
    """Whether only the value model learns."""


class PolicyGradient(Algorithm):
    """An algorithm over the clipped loss.

    Args:
        settings: those of the algorithm.
        kl_in: whether β·KL is taken from the rewards or added to the loss.
    """

    whiten = False

    def __init__(
        self, settings: PolicyGradientSettings, *, kl_in: Literal["reward", "loss"] = "loss"
    ) -> None:
        self._base = settings
        self._kl_in = kl_in
        self.epochs = settings.epochs
        self.minibatches = settings.minibatches
        self.needs_reference = settings.kl_coef > 0
        self.needs_entropy = settings.entropy_coef > 0
        self._rewards = RunningMoments()
        self._kl = KLWeight(settings.kl_coef)
        if settings.kl_target and settings.kl_coef:
            self._kl = AdaptiveKL(
                settings.kl_coef, target=settings.kl_target, horizon=settings.kl_horizon
            )

    @abstractmethod
    def advantages(self, step: Step) -> Advantages:
        """A of each token, before whitening."""

    def prepare(self, batch: StepBatch, reduce: Reduce) -> Clipped:
        """See `Algorithm.prepare`."""
        mask_N = token_mask(batch)
        check(batch, mask_N, self)
        kl_coef = self._kl.value
        rewards_S, metrics = self._shape(batch, reduce)
        step = Step(
            batch.lengths_S,
            batch.groups_S,
            mask_N,
            rewards_S,
            self._penalty(batch, kl_coef),
            batch.values_N,
        )
        made = self.advantages(step)
        of_all = moments(made.advantages_N, mask_N, reduce)
        advantages_N = torch.where(mask_N, made.advantages_N, 0.0)
        if self.whiten:
            advantages_N = whiten(advantages_N, mask_N, of_all)
        metrics |= {"advantage": of_all.mean, "advantage_std": of_all.std}
        metrics |= off_policy(batch, mask_N, self._base.behaviour_cap, reduce)
        metrics |= _value_metrics(batch.values_N, made.returns_N, mask_N, reduce)
        dtype = batch.proximal_N.dtype
        advantages_N = advantages_N.to(dtype)
        metrics |= self._divergence(batch, mask_N, advantages_N, reduce)
        # A value model learns of every token, a policy of those with an advantage.
        learnable_N = mask_N if self.value_model else mask_N & (advantages_N != 0)
        return Clipped(
            mask=mask_N,
            learnable=learnable_N,
            behaviour=batch.behaviour_N,
            proximal=batch.proximal_N,
            advantages=advantages_N,
            reference=batch.reference_N,
            kl_coef=kl_coef,
            returns=None if made.returns_N is None else made.returns_N.to(dtype),
            old_values=batch.values_N,
            policy_waits=self.policy_waits(batch.step),
            metrics=metrics,
        )

    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """See `Algorithm.weights`."""
        own_S = segment_sum(mask_N.to(torch.float64), lengths_S)
        counts = torch.stack([(own_S > 0).sum().to(torch.float64), own_S.sum()])
        n_samples, n_tokens = reduce.sum(counts).tolist()
        return token_weights(
            lengths_S,
            mask_N,
            self._base.aggregation,
            n_samples=n_samples,
            n_tokens=n_tokens,
            max_tokens=self._base.max_tokens,
        ).to(torch.float32)

    def loss(
        self,
        tokens: Clipped,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> TokenLoss:
        """See `Algorithm.loss`."""
        settings, weights, mask = self._base, tokens.weights, tokens.mask
        assert weights is not None
        capped: Any = {"cap": settings.behaviour_cap, "mode": settings.behaviour_mode}
        clipped = ppo_loss(
            logprobs_M,
            tokens.proximal,
            tokens.behaviour,
            tokens.advantages,
            weights,
            mask,
            clip=settings.clip,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            **capped,
        )
        loss, sums = clipped.loss, dict(clipped.sums)
        sums["policy_loss"] = clipped.loss.detach()
        if self._kl_in == "loss" and tokens.reference is not None:
            divergence = kl_loss(
                logprobs_M, tokens.reference, tokens.behaviour, weights, mask, **capped
            )
            loss = loss + tokens.kl_coef * divergence.loss
            sums["kl_loss"] = divergence.loss.detach()
        if entropy_M is not None:
            bonus = entropy_bonus(entropy_M, weights, mask)
            sums |= bonus.sums
            if settings.entropy_coef:
                loss = loss - settings.entropy_coef * bonus.loss
        sums["loss"] = loss.detach()
        return TokenLoss(loss, sums, clipped.maxima)

    def state_dict(self) -> dict[str, Any]:
        """β and the moments of rewards, which change from step to step."""
        return {"kl": self._kl.state_dict(), "rewards": self._rewards.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self._kl.load_state_dict(state["kl"])
        self._rewards.load_state_dict(state["rewards"])

    def _shape(self, batch: StepBatch, reduce: Reduce) -> tuple[Tensor, dict[str, float]]:
        """Rewards as they are learnt from; moves their running scale."""
        settings, all_S = self._base, torch.ones(len(batch.rewards_S), dtype=torch.bool)
        metrics = {}
        scale = 1.0
        if settings.reward_scale == "running":
            self._rewards.update(moments(batch.rewards_S, all_S, reduce))
            metrics["reward_scale"] = scale = self._rewards.scale
        shaped_S = shape_rewards(
            batch.rewards_S,
            batch.finished_S,
            scale=scale,
            clip=settings.reward_clip,
            penalty=settings.missing_eos_penalty,
        )
        metrics["reward_shaped"] = moments(shaped_S, all_S, reduce).mean
        return shaped_S, metrics

    def _penalty(self, batch: StepBatch, kl_coef: float) -> Tensor | None:
        """β·k1 of each token by the trainer's own numbers, where KL is in the reward."""
        if self._kl_in != "reward" or batch.reference_N is None:
            return None
        return kl_coef * kl_estimate(batch.proximal_N, batch.reference_N, "k1").double()

    def _divergence(
        self, batch: StepBatch, mask_N: Tensor, advantages_N: Tensor, reduce: Reduce
    ) -> dict[str, float]:
        """KL(π_prox ‖ π_ref), from which β is moved for the steps after this one.

        β stays where the policy does: in steps without an advantage or for the value model alone.
        """
        if batch.reference_N is None:
            return {}
        metrics, samples = divergence(batch, batch.reference_N, mask_N, reduce)
        beta = self._kl.value
        moves = bool((advantages_N != 0).any()) and not self.policy_waits(batch.step)
        if samples and reduce.max(torch.tensor([moves], dtype=torch.float64)).item():
            self._kl.update(metrics["kl"], samples)
        return metrics | {"kl_coef": beta}


def _value_metrics(
    values_N: Tensor | None, returns_N: Tensor | None, mask_N: Tensor, reduce: Reduce
) -> dict[str, float]:
    """How well the values foretold the returns."""
    if values_N is None or returns_N is None:
        return {}
    of_returns: Moments = moments(returns_N, mask_N, reduce)
    of_errors = moments(returns_N - values_N.double(), mask_N, reduce)
    spread = of_returns.variance
    varied = spread > 1e-12 * of_returns.mean**2  # below, it is rounding
    return {
        "returns": of_returns.mean,
        "value": of_returns.mean - of_errors.mean,
        "explained_variance": 1.0 - of_errors.variance / spread if varied else 0.0,
    }
