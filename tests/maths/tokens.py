"""Wild tokens for property tests: ragged samples with masks, in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from guerdon.trainer.rl.learner.algorithms.base import StepBatch


@dataclass(frozen=True)
class Tokens:
    """Some samples' tokens, with numbers of every kind."""

    lengths_S: Tensor
    groups_S: Tensor
    rewards_S: Tensor
    finished_S: Tensor
    mask_N: Tensor
    logprobs_N: Tensor
    proximal_N: Tensor
    behaviour_N: Tensor
    reference_N: Tensor
    advantages_N: Tensor
    values_N: Tensor
    old_values_N: Tensor
    entropy_N: Tensor

    @property
    def starts_S(self) -> Tensor:
        """Where each sample begins."""
        return self.lengths_S.cumsum(0) - self.lengths_S

    @property
    def pairs_K2(self) -> Tensor:
        """Every pair of a group, the better sample first; ties are none."""
        rewards_S = self.rewards_S
        better_SS = rewards_S[:, None] > rewards_S[None, :]
        return (better_SS & (self.groups_S[:, None] == self.groups_S[None, :])).nonzero()

    def places(self, samples: Tensor) -> Tensor:
        """The tokens of these samples, in their order."""
        ends_S = self.lengths_S.cumsum(0)
        parts = [torch.arange(self.starts_S[s], ends_S[s]) for s in samples]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def take(self, samples: Tensor) -> Tokens:
        """These samples, in their order."""
        places = self.places(samples)
        return Tokens(
            **{
                name: getattr(self, name)[samples if name.endswith("_S") else places]
                for name in self.__dataclass_fields__
            }
        )

    def filled(self, value: float) -> Tokens:
        """With this number wherever the mask is False."""
        changed = {
            name: torch.where(self.mask_N, getattr(self, name), value)
            for name in self.__dataclass_fields__
            if name.endswith("_N") and name != "mask_N"
        }
        return replace(self, **changed)

    def batch(self) -> StepBatch:
        """As a learner gives them to an algorithm."""
        return StepBatch(
            lengths_S=self.lengths_S,
            groups_S=self.groups_S,
            rewards_S=self.rewards_S,
            finished_S=self.finished_S,
            behaviour_N=self.behaviour_N,
            proximal_N=self.proximal_N,
            reference_N=self.reference_N,
            values_N=self.old_values_N,
            mask_N=self.mask_N,
        )


def make(lengths: list[int], seed: int, masked: float = 0.3) -> Tokens:
    """Tokens of samples of these lengths; each masked with this probability."""
    generator = torch.Generator().manual_seed(seed)

    def normal(size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    samples, tokens = len(lengths), sum(lengths)
    behaviour_N = -normal(tokens).square()
    return Tokens(
        lengths_S=torch.tensor(lengths, dtype=torch.int64),
        groups_S=torch.randint(0, samples // 3 + 1, (samples,), generator=generator),
        rewards_S=normal(samples).round(decimals=1),
        finished_S=torch.rand(samples, generator=generator) < 0.7,
        mask_N=torch.rand(tokens, generator=generator) >= masked,
        logprobs_N=behaviour_N + normal(tokens, 0.5),
        proximal_N=behaviour_N + normal(tokens, 0.5),
        behaviour_N=behaviour_N,
        reference_N=behaviour_N + normal(tokens, 0.5),
        advantages_N=normal(tokens),
        values_N=normal(tokens),
        old_values_N=normal(tokens),
        entropy_N=normal(tokens).abs(),
    )


wild = st.builds(
    make,
    st.lists(st.integers(1, 12), min_size=1, max_size=10),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 0.9]),
)
