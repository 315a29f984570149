"""What the learner and an algorithm hand to each other.

    StepBatch    a step's samples as this process has them, before anything is learnt
    Prepared     what the algorithm made of them, once for the step: advantages, returns
    MicroBatch   some of its tokens, on the learner's device, with their weights in the loss
    LossParts    what one forward pass gives: sums to differentiate and sums to log

Tensors are flat: the samples' response tokens one after the other, with no padding and no
prompts. Dimensions are in the names:

    N   response tokens of this process's step         M   those of one micro-batch
    S   samples, of `lengths_S` tokens each: sum = N

Losses are sums over tokens times `weights`, which hold every division, by counts over the whole
optimiser step on all processes. So the micro-batches' gradients add up to the step's, however
the tokens are cut. (DDP and FSDP average gradients: the learner multiplies by the world size.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class Reduce(Protocol):
    """Sums and maxima over all processes; every process calls alike, with equal shapes."""

    def sum(self, values_K: Tensor) -> Tensor:
        """The sum over processes of float64 [K] on the CPU; may not change its argument."""
        ...

    def max(self, values_K: Tensor) -> Tensor:
        """The maximum over processes of float64 [K] on the CPU."""
        ...


class Alone:
    """The only process there is."""

    def sum(self, values_K: Tensor) -> Tensor:
        """The same numbers."""
        return values_K

    def max(self, values_K: Tensor) -> Tensor:
        """The same numbers."""
        return values_K


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """A step's samples as this process has them. On the CPU; a process may have none.

    All completions of a prompt are on one process.
    """

    lengths_S: Tensor
    """int64 [S]. Response tokens of each sample, the ending token included; at least 1."""
    groups_S: Tensor
    """int64 [S]. Samples with equal numbers answer the same prompt; the order is free."""
    rewards_S: Tensor
    """float64 [S]. `Sample.reward`: raw, finite. Shaping is the algorithm's."""
    finished_S: Tensor
    """bool [S]. `Sample.finished`: it ended by itself."""
    behaviour_N: Tensor
    """float32 [N]. log π_μ, from the sampler."""
    proximal_N: Tensor
    """float32 [N]. log π_prox, by the trainer at the start of the step, dropout off."""
    reference_N: Tensor | None = None
    """float32 [N]. log π_ref, by the frozen reference; needed where `needs_reference`."""
    values_N: Tensor | None = None
    """float32 [N]. V(s_t) of the state *before* token t; needed where `needs_values`."""
    mask_N: Tensor | None = None
    """bool [N]. False where a token is left out; None trains on all."""
    kept_S: Tensor | None = None
    """bool [S]. Online RFT: what was kept; None is all."""
    policy_waits: bool = False
    """Whether only the value model learns in this step."""
    pairs_K2: Tensor | None = None
    """int64 [K, 2]. Online DPO: places in S of each pair's better completion and worse one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some tokens of a step, on the device of the forward pass."""

    weights_M: Tensor
    """float32 [M]. What each token's loss is multiplied by; 0 where it is left out."""
    mask_M: Tensor
    behaviour_M: Tensor
    proximal_M: Tensor
    advantages_M: Tensor
    reference_M: Tensor | None
    returns_M: Tensor | None
    values_M: Tensor | None
    losses_M: Tensor | None
    kl_coef: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the algorithm made of a step's samples. On the CPU."""

    mask_N: Tensor
    """bool [N]. The tokens that are trained on."""
    behaviour_N: Tensor
    proximal_N: Tensor
    advantages_N: Tensor
    """float32 [N]. 0 where the mask is False."""
    reference_N: Tensor | None = None
    returns_N: Tensor | None = None
    """float32 [N]. What the value model is to learn."""
    values_N: Tensor | None = None
    """float32 [N]. The values before the step."""
    losses_N: Tensor | None = None
    """float32 [N]. Online DPO: the token's share of the loss before the step."""
    kl_coef: float = 0.0
    """β of this step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Keys of `metrics.KEYS`, over all processes."""

    def teaches(self, tokens_M: Tensor) -> bool:
        """Whether anything can be learnt of these tokens (places in N) but by regularisation.

        A value model learns of every token, a policy of those with an advantage.
        """
        mask_M = self.mask_N[tokens_M]
        if self.returns_N is None:
            mask_M = mask_M & (self.advantages_N[tokens_M] != 0)
        return bool(mask_M.any())

    def take(
        self, tokens_M: Tensor, weights_M: Tensor, device: torch.device | str = "cpu"
    ) -> MicroBatch:
        """Some of the tokens, for one forward pass.

        Args:
            tokens_M: int64, places in N, in the order of the log-probabilities that will come.
            weights_M: of these tokens, from `Algorithm.weights`.
            device: where the log-probabilities will be.
        """

        def pick(tensor_N: Tensor | None) -> Tensor | None:
            return None if tensor_N is None else tensor_N[tokens_M].to(device)

        return MicroBatch(
            weights_M=weights_M.to(device),
            mask_M=self.mask_N[tokens_M].to(device),
            behaviour_M=self.behaviour_N[tokens_M].to(device),
            proximal_M=self.proximal_N[tokens_M].to(device),
            advantages_M=self.advantages_N[tokens_M].to(device),
            reference_M=pick(self.reference_N),
            returns_M=pick(self.returns_N),
            values_M=pick(self.values_N),
            losses_M=pick(self.losses_N),
            kl_coef=self.kl_coef,
        )


@dataclass(frozen=True, slots=True)
class LossParts:
    """What one forward pass gives. Everything adds up over micro-batches and processes."""

    policy: Tensor
    """Scalar, differentiable: the policy's loss, with its KL and entropy parts."""
    value: Tensor | None
    """Scalar, differentiable: the value model's loss times its coefficient."""
    sums: dict[str, Tensor]
    """Detached scalars to add up over micro-batches and processes."""
    maxima: dict[str, Tensor]
    """Detached scalars of which the largest counts."""

    @property
    def total(self) -> Tensor:
        """What to differentiate, unless only the value model is to learn."""
        return self.policy if self.value is None else self.policy + self.value


class Algorithm(Protocol):
    """One way to learn from rewards. A step of the learner goes:

    prepared = algorithm.prepare(batch, reduce)
    for every epoch, for every minibatch of whole samples:
        weights = algorithm.weights(its lengths_S, its mask, reduce)
        unless the prepared tokens of the minibatch teach something, on any rank: leave it out
        for every micro-batch of it:
            parts = algorithm.loss(prepared.take(...), logprobs, entropy, values)
            parts.total.backward()
        optimiser step
    metrics = prepared.metrics | summarise(sums, maxima, updates)
    """

    needs_values: bool
    """Whether there is a value model."""
    needs_reference: bool
    """Whether `StepBatch.reference_N` must be there."""
    needs_proximal: bool
    """Whether log π_prox is used; else the learner may give log π_μ in its place."""
    needs_entropy: bool
    """Whether the entropy given to `loss` must be differentiable (else it is only logged)."""
    epochs: int
    """Passes over a step's samples."""
    minibatches: int
    """Optimiser steps in a pass."""

    def prepare(self, batch: StepBatch, reduce: Reduce) -> Prepared:
        """Advantages and returns, once for the step. Moves β and the running reward scale.

        Raises:
            ValueError: a reward, log-probability or value is not finite.
        """
        ...

    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """What each token of one optimiser step's samples weighs in its loss, float32 [N].

        Args:
            lengths_S: of this process's samples in the optimiser step.
            mask_N: `Prepared.mask_N` of their tokens, sample after sample.
            reduce: counts over all processes.
        """
        ...

    def loss(
        self,
        micro: MicroBatch,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> LossParts:
        """The loss of some tokens, summed.

        Args:
            micro: the tokens.
            logprobs_M: float, differentiable: log π_θ at the sampling temperature.
            entropy_M: float: of the whole next-token distribution; None where it isn't computed.
            values_M: float, differentiable: V(s_t) by the value model as it is now.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step: numbers and strings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...


_PER_UPDATE = frozenset({"loss", "policy_loss", "value_loss", "kl_loss"})


def summarise(
    sums: Mapping[str, float], maxima: Mapping[str, float], updates: int
) -> dict[str, float]:
    """The metrics of a step from what its `LossParts` add up to, by the keys of `metrics.KEYS`.

    Args:
        sums: `LossParts.sums` over all micro-batches, optimiser steps and processes.
        maxima: likewise the largest of `LossParts.maxima`.
        updates: optimiser steps that they are over.
    """
    tokens = max(sums.get("tokens", 0.0), 1.0)
    metrics = {
        name: value / (max(updates, 1) if name in _PER_UPDATE else tokens)
        for name, value in sums.items()
        if name != "tokens"
    }
    return metrics | dict(maxima)
