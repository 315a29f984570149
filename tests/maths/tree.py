"""Policies small enough to enumerate: a table of logits over a tree of tokens.

Token 0 ends a completion, except that nothing goes on after `depth` tokens. So completions are
of different lengths, and everything that sampling estimates can be computed by summing.
A state is a prefix; row `s` of a table belongs to it. Depth 1 is a bandit: a state, V actions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from tests.maths.ranks import ALONE
from torch import Tensor

from guerdon.trainer.rl.learner.algorithms.base import Algorithm, Prepared, StepBatch
from guerdon.trainer.rl.learner.algorithms.online_dpo import OnlineDPO

Way = Literal["decoupled", "plain", "forgotten"]


class Tree:
    """All completions of up to `depth` tokens out of `vocabulary`."""

    def __init__(self, vocabulary: int, depth: int) -> None:
        self.vocabulary = vocabulary
        self.completions = [
            path
            for size in range(1, depth + 1)
            for path in itertools.product(range(vocabulary), repeat=size)
            if all(path[:-1]) and (path[-1] == 0 or size == depth)
        ]
        prefixes = sorted({path[:at] for path in self.completions for at in range(len(path))})
        state = {prefix: place for place, prefix in enumerate(prefixes)}
        self.states = len(prefixes)
        self.lengths_C = torch.tensor([len(path) for path in self.completions])
        self._there_CT = torch.arange(depth) < self.lengths_C[:, None]
        self._states_CT = torch.zeros(len(self.completions), depth, dtype=torch.int64)
        self._tokens_CT = torch.zeros_like(self._states_CT)
        for place, path in enumerate(self.completions):
            for at, token in enumerate(path):
                self._states_CT[place, at] = state[path[:at]]
                self._tokens_CT[place, at] = token

    def tokens(self, drawn_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lengths [S], states [N] and tokens [N] of drawn completions."""
        there_ST = self._there_CT[drawn_S]
        states_N = self._states_CT[drawn_S][there_ST]
        tokens_N = self._tokens_CT[drawn_S][there_ST]
        return self.lengths_C[drawn_S], states_N, tokens_N

    def logprobs(self, logits: Tensor) -> Tensor:
        """log π of every completion, [C]."""
        lengths_S, states_N, tokens_N = self.tokens(torch.arange(len(self.completions)))
        owner_N = torch.arange(len(lengths_S)).repeat_interleave(lengths_S)
        token_logprobs_N = logits.log_softmax(-1)[states_N, tokens_N]
        return logits.new_zeros(len(lengths_S)).index_add(0, owner_N, token_logprobs_N)

    def optimum(self, reference: Tensor, rewards_C: Tensor, beta: float) -> Tensor:
        """π* ∝ π_ref·exp(R/β), [C]."""
        return (self.logprobs(reference) + rewards_C / beta).softmax(0)

    def draw(self, logits: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Places of completions, drawn from the policy, [S]."""
        probabilities_C = self.logprobs(logits).exp()
        return torch.multinomial(probabilities_C, samples, replacement=True, generator=generator)


@dataclass
class Learner:
    """The loop that an `Algorithm` asks for, over tables; in float64."""

    tree: Tree
    algorithm: Algorithm
    logits: Tensor
    reference: Tensor
    rewards_C: Tensor
    lr: float
    seed: int = 0

    def __post_init__(self) -> None:
        self.logits = self.logits.clone().requires_grad_()
        self.values = torch.zeros(self.tree.states, dtype=torch.float64, requires_grad=True)
        self.optimiser = torch.optim.Adam(
            [{"params": [self.logits]}, {"params": [self.values], "lr": 3 * self.lr}], lr=self.lr
        )
        self.generator = torch.Generator().manual_seed(self.seed)

    def decay(self, left: float) -> None:
        """Go on with this share of the learning rates."""
        self.optimiser.param_groups[0]["lr"] = self.lr * left
        self.optimiser.param_groups[1]["lr"] = 3 * self.lr * left

    def step(
        self,
        drawn_S: Tensor,
        groups_S: Tensor,
        behaviour: Tensor,
        way: Way = "decoupled",
        pairs_K2: Tensor | None = None,
    ) -> dict[str, float]:
        """One step on completions that `behaviour` drew.

        The right way, as plain PPO (π_prox = π_μ), or with w forgotten (π_μ = π_prox).
        """
        lengths_S, states_N, tokens_N = self.tree.tokens(drawn_S)
        with torch.no_grad():
            behaviour_N = behaviour.log_softmax(-1)[states_N, tokens_N]
            proximal_N = self.logits.log_softmax(-1)[states_N, tokens_N]
            reference_N = self.reference.log_softmax(-1)[states_N, tokens_N]
        batch = StepBatch(
            lengths_S=lengths_S,
            groups_S=groups_S,
            rewards_S=self.rewards_C[drawn_S],
            finished_S=torch.ones(len(drawn_S), dtype=torch.bool),
            behaviour_N=proximal_N if way == "forgotten" else behaviour_N,
            proximal_N=behaviour_N if way == "plain" else proximal_N,
            reference_N=reference_N if self.algorithm.needs_reference else None,
            values_N=self.values.detach()[states_N],
        )
        if isinstance(self.algorithm, OnlineDPO):
            self.algorithm.pairs = lambda batch: pairs_K2  # type: ignore[method-assign]
        prepared = self.algorithm.prepare(batch, ALONE)
        owner_N = torch.arange(len(lengths_S)).repeat_interleave(lengths_S)
        for _ in range(self.algorithm.epochs):
            order = torch.randperm(len(drawn_S), generator=self.generator)
            for part in order.chunk(self.algorithm.minibatches):
                part = part.sort().values
                places = torch.isin(owner_N, part).nonzero().squeeze(1)
                self._update(prepared, lengths_S[part], places, states_N, tokens_N)
        return prepared.metrics

    def _update(
        self,
        prepared: Prepared,
        lengths_S: Tensor,
        places: Tensor,
        states_N: Tensor,
        tokens_N: Tensor,
    ) -> None:
        weights = self.algorithm.weights(lengths_S, prepared.mask[places], ALONE)
        logprobs = self.logits.log_softmax(-1)[states_N[places]]
        parts = self.algorithm.loss(
            prepared.take(places, weights),
            logprobs.gather(-1, tokens_N[places, None]).squeeze(-1),
            -(logprobs.exp() * logprobs).sum(-1),
            self.values[states_N[places]],
        )
        self.optimiser.zero_grad()
        parts.loss.backward()
        self.optimiser.step()


def random_table(tree: Tree, seed: int, scale: float = 1.0) -> Tensor:
    """Logits, [states, V] in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (tree.states, tree.vocabulary)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def random_rewards(tree: Tree, seed: int) -> Tensor:
    """A reward of each completion, [C]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(len(tree.completions), generator=generator, dtype=torch.float64)
