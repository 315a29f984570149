"""What the learner and an algorithm hand to each other.

    StepBatch    a step's samples as this process has them, before anything is learnt
    Prepared     what the algorithm made of them, once for the step, token by token
    TokenLoss    what one forward pass gives: a sum to differentiate and sums to log

Tensors are flat: the samples' response tokens one after the other, with no padding and no
prompts. Dimensions are in the names:

    N   response tokens of this process's step         M   those of one micro-batch
    S   samples, of `lengths_S` tokens each: sum = N

Losses are sums over tokens times `weights`, which hold every division, by counts over the whole
optimiser step on all processes. So the micro-batches' gradients add up to the step's, however
the tokens are cut. (DDP and FSDP average gradients: the learner multiplies by the world size.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.rl.learner.losses import TokenLoss


class Reduce(Protocol):
    """Sums and maxima over all processes; every process calls alike, with equal shapes."""

    def sum(self, values_K: Tensor) -> Tensor:
        """The sum over processes of float64 [K] on the CPU; may not change its argument."""
        ...

    def max(self, values_K: Tensor) -> Tensor:
        """The maximum over processes of float64 [K] on the CPU."""
        ...


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
    """float32 [N]. V(s_t) of the state *before* token t; there where there is a value model."""
    mask_N: Tensor | None = None
    """bool [N]. False where a token is left out; None trains on all."""
    samples: Sequence[Sample] = ()
    """The S samples themselves, for algorithms that choose among them."""
    step: int = 0
    """Updates of the policy so far."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What an algorithm made of a step's samples, a number for each token.

    An algorithm adds the tensors that its loss needs. They are [N] and on the CPU; of those that
    `take` gives, [M] and where the forward pass is.
    """

    mask: Tensor
    """bool. The tokens that are trained on."""
    learnable: Tensor
    """bool. Those of which anything can be learnt but by regularisation."""
    weights: Tensor | None = None
    """float32. The factors of the tokens' losses, from `take`; 0 where one is left out."""
    metrics: dict[str, float]
    """Keys of `metrics.KEYS`, over all processes."""

    def take(self, tokens_M: Tensor, weights_M: Tensor, device: torch.device | str = "cpu") -> Self:
        """Some of the tokens, for one forward pass.

        Args:
            tokens_M: int64, places in N, in the order of the log-probabilities that will come.
            weights_M: of these tokens, from `Algorithm.weights`.
            device: where the log-probabilities will be.
        """
        taken: dict[str, Any] = {"weights": weights_M.to(device)}
        for field in fields(self):
            tensor_N = getattr(self, field.name)
            if isinstance(tensor_N, Tensor):
                taken[field.name] = tensor_N[tokens_M].to(device)
        return replace(self, **taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueModel:
    """The value model that an algorithm trains beside the policy."""

    kind: Literal["head", "own"]
    """A linear head on the policy's last hidden states, or a network of its own."""
    learning_rate: float
    """Peak learning rate."""
    max_grad_norm: float
    """Gradient clipping, by the norm over the value model's own weights."""
    warmup: int
    """First steps in which it learns and the policy waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpliedReward:
    """The reward that a trained policy implies: β·log(π/π_ref)."""

    beta: float
    loss: str
    """The name of the loss by which it was trained."""


class Algorithm(ABC):
    """One way to learn from rewards. A step of the learner goes:

    prepared = algorithm.prepare(batch, reduce)
    for every epoch, for every minibatch of whole samples:
        weights = algorithm.weights(its lengths_S, its mask, reduce)
        unless a token of the minibatch is learnable, on any rank: leave it out
        for every micro-batch of it:
            found = algorithm.loss(prepared.take(...), logprobs, entropy, values)
            found.loss.backward()
        optimiser step
    metrics = prepared.metrics | summarise(sums, maxima, updates)
    """

    value_model: ValueModel | None = None
    """The value model beside the policy, where there is one."""
    needs_reference: bool = False
    """Whether `StepBatch.reference_N` must be there."""
    needs_proximal: bool = True
    """Whether log π_prox is used; else the learner may give log π_μ in its place."""
    needs_entropy: bool = False
    """Whether the entropy given to `loss` must be differentiable (else it is only logged)."""
    epochs: int = 1
    """Passes over a step's samples."""
    minibatches: int = 1
    """Optimiser steps in a pass."""

    def policy_waits(self, step: int) -> bool:
        """Whether only the value model learns, after so many updates."""
        return self.value_model is not None and step < self.value_model.warmup

    @abstractmethod
    def prepare(self, batch: StepBatch, reduce: Reduce) -> Prepared:
        """What is learnt from the samples, once for the step. Moves β and the reward scale.

        Raises:
            ValueError: a reward, log-probability or value is not finite.
        """

    @abstractmethod
    def weights(self, lengths_S: Tensor, mask_N: Tensor, reduce: Reduce) -> Tensor:
        """The factor of each token of one optimiser step's samples in its loss, float32 [N].

        Args:
            lengths_S: of this process's samples in the optimiser step.
            mask_N: `Prepared.mask` of their tokens, sample after sample.
            reduce: counts over all processes.
        """

    @abstractmethod
    def loss(
        self,
        tokens: Any,
        logprobs_M: Tensor,
        entropy_M: Tensor | None = None,
        values_M: Tensor | None = None,
    ) -> TokenLoss:
        """The loss of some tokens, summed. Everything adds up over micro-batches and processes.

        Args:
            tokens: of what `prepare` gave.
            logprobs_M: float, differentiable: log π_θ at the sampling temperature.
            entropy_M: float: of the whole next-token distribution; None where it isn't computed.
            values_M: float, differentiable: V(s_t) by the value model as it is now.
        """

    def warning(self, row: Mapping[str, float]) -> str:
        """What a person should know of a step that taught nothing; empty if it taught something.

        Args:
            row: the step's line in metrics.jsonl.
        """
        if not row["skipped_updates"]:
            return ""
        return (
            "a step left out an update of the policy: no completion had a better reward than the "
            "others to its prompt, so there was nothing to learn; are the prompts too easy or too "
            "hard, or does the reward not tell completions apart?"
        )

    def implied_reward(self) -> ImpliedReward | None:
        """What the trained policy is as a reward model; None where it is none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Numbers and strings that change from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most have none
        """Go on from a `state_dict`."""


_PER_UPDATE = frozenset({"loss", "policy_loss", "value_loss", "kl_loss"})


def summarise(
    sums: Mapping[str, float], maxima: Mapping[str, float], updates: int
) -> dict[str, float]:
    """The metrics of a step from what its `TokenLoss`es add up to, by the keys of `metrics.KEYS`.

    Args:
        sums: `TokenLoss.sums` over all micro-batches, optimiser steps and processes.
        maxima: likewise the largest of `TokenLoss.maxima`.
        updates: optimiser steps that they are over.
    """
    tokens = max(sums.get("tokens", 0.0), 1.0)
    metrics = {
        name: value / (max(updates, 1) if name in _PER_UPDATE else tokens)
        for name, value in sums.items()
        if name != "tokens"
    }
    return metrics | dict(maxima)
