"""Advantages made of rewards, as pure functions of flat tensors on the CPU.

S samples of `lengths_S` response tokens each, N tokens in all, one sample after the other and
nothing between. Tokens outside `mask_N` are left out: values and advantages are carried across
them, and what they hold doesn't matter.

Sources
    GAE       Schulman et al. 2016, arXiv:1506.02438, eq. 11-16
    rewards   Ziegler et al. 2019, arXiv:1909.08593, eq. 2; per token: Ouyang et al. 2022
    GRPO      Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2; without std: arXiv:2503.20783
    RLOO      Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, eq. 6
    moments   Chan, Golub and LeVeque 1979, for parts that are put together
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from guerdon.trainer.rl.learner.algorithms.base import Reduce

GROUP_EPSILON = 1e-4
"""Added to a group's standard deviation, as TRL does."""
WHITEN_EPSILON = 1e-8
"""Added to the variance before its root is taken."""


def shape_rewards(
    rewards_S: Tensor, finished_S: Tensor, *, scale: float, clip: float, penalty: float
) -> Tensor:
    """Rewards as they are learnt from: scaled, then clipped, then the penalty.

    The penalty comes last, so that a clip can't hide it and it means the same at any scale.

    Args:
        rewards_S: raw.
        finished_S: bool; whether a completion ended by itself.
        scale: what to divide by; their mean is not moved.
        clip: ± the most; 0 does not clip.
        penalty: subtracted where a completion did not end by itself.

    Returns:
        float64 [S].

    Raises:
        ValueError: a reward is not a finite number.
    """
    require_finite("reward", rewards_S)
    shaped_S = rewards_S.to(torch.float64) / scale
    if clip:
        shaped_S = shaped_S.clamp(-clip, clip)
    return torch.where(finished_S, shaped_S, shaped_S - penalty)


def token_rewards(
    rewards_S: Tensor, lengths_S: Tensor, mask_N: Tensor, penalty_N: Tensor | None = None
) -> Tensor:
    """r_t = −penalty_t + 1[t is its sample's last token]·R, float64 [N].

    The last token is the ending token where there is one. Where the mask leaves it out, R goes
    to the last one that the mask leaves in; a sample without any loses it.

    Args:
        rewards_S: R of each sample.
        lengths_S: int64 [S].
        mask_N: bool [N].
        penalty_N: β·k1 of each token; None is 0.
    """
    rewards_N = torch.zeros(len(mask_N), dtype=torch.float64)
    if penalty_N is not None:
        rewards_N = torch.where(mask_N, -penalty_N.to(torch.float64), rewards_N)
    last_S, has_S = last_tokens(lengths_S, mask_N)
    return rewards_N.index_add(0, last_S[has_S], rewards_S.to(torch.float64)[has_S])


def last_tokens(lengths_S: Tensor, mask_N: Tensor) -> tuple[Tensor, Tensor]:
    """The place in N of each sample's last masked token, and whether it has one. [S], [S]."""
    owner_N = torch.arange(len(lengths_S)).repeat_interleave(lengths_S)
    places_N = torch.where(mask_N, torch.arange(len(mask_N)), -1)
    last_S = torch.full((len(lengths_S),), -1, dtype=torch.int64)
    last_S = last_S.scatter_reduce(0, owner_N, places_N, "amax")
    return last_S.clamp(min=0), last_S >= 0


def gae(
    rewards_N: Tensor,
    values_N: Tensor,
    lengths_S: Tensor,
    mask_N: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns: δ_t = r_t + γV_{t+1} − V_t, A_t = δ_t + γλA_{t+1}, G = A + V.

    A sample ends at its last token: nothing comes after, whether it ended by itself or was
    cut. All samples go backwards together, each from its own end.

    Args:
        rewards_N: r_t.
        values_N: V of the state before token t.
        lengths_S: int64 [S].
        mask_N: bool [N].
        gamma: γ.
        lam: λ.

    Returns:
        A and G, float64 [N], 0 outside the mask.
    """
    rewards_N, values_N = rewards_N.to(torch.float64), values_N.to(torch.float64)
    advantages_N = torch.zeros(len(mask_N), dtype=torch.float64)
    order_S = lengths_S.argsort(descending=True, stable=True)
    ends_S, sizes_S = lengths_S.cumsum(0)[order_S] - 1, lengths_S[order_S]
    next_value_S = torch.zeros(len(lengths_S), dtype=torch.float64)
    next_advantage_S = torch.zeros_like(next_value_S)
    for back in range(int(sizes_S.max()) if len(sizes_S) else 0):
        going = int((sizes_S > back).sum())  # the longest come first
        at = ends_S[:going] - back
        value, advantage = next_value_S[:going], next_advantage_S[:going]
        delta = rewards_N[at] + gamma * value - values_N[at]
        new = torch.where(mask_N[at], delta + gamma * lam * advantage, advantage)
        next_value_S[:going] = torch.where(mask_N[at], values_N[at], value)
        next_advantage_S[:going] = new
        advantages_N[at] = torch.where(mask_N[at], new, 0.0)
    returns_N = torch.where(mask_N, advantages_N + values_N, 0.0)
    return advantages_N, returns_N


def group_advantages(rewards_S: Tensor, groups_S: Tensor, *, scale_by_std: bool) -> Tensor:
    """GRPO: (R − mean of the group) / (std of the group + ε), float64 [S].

    The standard deviation is the unbiased one. A group of equal rewards, or of one sample, says
    nothing: its advantages are exactly 0.

    Args:
        rewards_S: R.
        groups_S: int64 [S]; equal numbers are a group.
        scale_by_std: divide by the standard deviation (Dr. GRPO does not).
    """
    rewards_S, group = rewards_S.to(torch.float64), _Groups(groups_S)
    centred_S = rewards_S - group.mean(rewards_S)
    if scale_by_std:
        variance_S = group.sum(centred_S.square()) / (group.count_S - 1).clamp(min=1)
        centred_S = centred_S / (variance_S.sqrt() + GROUP_EPSILON)
    return torch.where(group.differ(rewards_S), centred_S, 0.0)


def leave_one_out(rewards_S: Tensor, groups_S: Tensor) -> Tensor:
    """RLOO: R − mean of the others in the group, float64 [S]; 0 where there are no others."""
    rewards_S, group = rewards_S.to(torch.float64), _Groups(groups_S)
    others_S = (group.count_S - 1).clamp(min=1)
    advantages_S = (rewards_S - group.mean(rewards_S)) * group.count_S / others_S
    return torch.where(group.differ(rewards_S), advantages_S, 0.0)


class _Groups:
    """Statistics of each sample's group."""

    def __init__(self, groups_S: Tensor) -> None:
        _, owner_S, count_G = np.unique(groups_S.numpy(), return_inverse=True, return_counts=True)
        self._owner_S = torch.from_numpy(owner_S)
        self._groups = len(count_G)
        self.count_S = torch.from_numpy(count_G[owner_S])

    def sum(self, values_S: Tensor) -> Tensor:
        sums_G = values_S.new_zeros(self._groups).index_add(0, self._owner_S, values_S)
        return sums_G[self._owner_S]

    def mean(self, values_S: Tensor) -> Tensor:
        return self.sum(values_S) / self.count_S

    def differ(self, values_S: Tensor) -> Tensor:
        """Whether the group's values are not all the same."""
        empty_G = values_S.new_zeros(self._groups)
        low_G = empty_G.scatter_reduce(0, self._owner_S, values_S, "amin", include_self=False)
        high_G = empty_G.scatter_reduce(0, self._owner_S, values_S, "amax", include_self=False)
        return (low_G != high_G)[self._owner_S]


@dataclass(frozen=True, slots=True)
class Moments:
    """How many numbers there are, their mean, and their squared distances from it, summed."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two numbers."""
        return self.squares / (self.count - 1) if self.count > 1 else 0.0

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.variance)

    def merge(self, other: Moments) -> Moments:
        """The moments of both together."""
        count = self.count + other.count
        if not count:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        apart = gap * gap * self.count * other.count / count
        return Moments(count, mean, self.squares + other.squares + apart)


def moments(values_N: Tensor, mask_N: Tensor, reduce: Reduce) -> Moments:
    """The moments of masked numbers over all processes, in float64 and two passes.

    Two sums over processes, on every process, also on one that has no numbers.
    """
    kept = values_N[mask_N].to(torch.float64)
    count, total = reduce.sum(torch.stack([mask_N.sum().to(torch.float64), kept.sum()])).tolist()
    mean = total / max(count, 1.0)
    squares = reduce.sum((kept - mean).square().sum().reshape(1)).item()
    return Moments(count, mean, squares)


def whiten(values_N: Tensor, mask_N: Tensor, moments: Moments) -> Tensor:
    """(x − mean)·rsqrt(variance + ε), masked again. Float64 [N].

    Args:
        values_N: x.
        mask_N: bool [N].
        moments: of x over the mask, on all processes.
    """
    scale = 1.0 / math.sqrt(moments.variance + WHITEN_EPSILON)
    white_N = (values_N.to(torch.float64) - moments.mean) * scale
    return torch.where(mask_N, white_N, 0.0)


class RunningMoments:
    """Moments of all rewards of a run so far, for their scale."""

    def __init__(self) -> None:
        self.moments = Moments()

    @property
    def scale(self) -> float:
        """The rewards' standard deviation; 1 while rewards have not differed."""
        std = self.moments.std
        return std if std > WHITEN_EPSILON else 1.0

    def update(self, moments: Moments) -> None:
        """Add a step's rewards, of all processes."""
        self.moments = self.moments.merge(moments)

    def state_dict(self) -> dict[str, Any]:
        """The three numbers of the moments."""
        return asdict(self.moments)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.moments = Moments(float(state["count"]), float(state["mean"]), float(state["squares"]))


def require_finite(what: str, values: Tensor) -> None:
    """Refuse numbers that are not finite.

    Raises:
        ValueError: naming what and where.
    """
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise ValueError(f"{what} {place} of {len(values)} is {float(values[place])}")
