"""What the policy makes of what is held out: likelihoods, and the rewards that they imply.

The reward that a policy implies against its reference is β·(log π(y|x) − log π_ref(y|x)), up to a
term of the prompt (Rafailov et al. 2023, arXiv:2305.18290, eq. 5): of a pair's two answers it says
which is better. ORPO has no reference and compares odds, so mean log-probabilities; both are
measured for every recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.common.measuring.measures import Floats, Ints, accuracy, calibration
from guerdon.trainer.common.measuring.statistics import estimate
from guerdon.trainer.common.process_group import SINGLE_PROCESS, ProcessGroup
from guerdon.trainer.common.trl.completions import Completion, response_logprobs
from guerdon.trainer.fine_tune.inputs import PairTokens


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Log-probabilities of answers in nats, summed over tokens, in the order of the rows."""

    sums: Floats
    tokens: Floats

    @property
    def means(self) -> Floats:
        """Mean log-probability of a token of each answer."""
        found: Floats = self.sums / self.tokens
        return found

    @property
    def nll(self) -> float:
        """Negative log-likelihood by the token, over all tokens."""
        return float(-self.sums.sum() / self.tokens.sum())

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Likelihoods:
        """The likelihoods that gave a tree."""
        return cls(np.array(tree["sums"]), np.array(tree["tokens"]))

    def of(self, places: Sequence[int]) -> Likelihoods:
        """The likelihoods of some of the answers."""
        return Likelihoods(self.sums[places], self.tokens[places])

    def tree(self) -> dict[str, Any]:
        """The likelihoods for JSON."""
        return {"sums": self.sums.tolist(), "tokens": self.tokens.tolist()}


def likelihoods(
    model: Any,
    completions: Sequence[Completion],
    dtype: str,
    processes: ProcessGroup = SINGLE_PROCESS,
    progress: Callable[[int], None] = lambda done: None,
) -> Likelihoods:
    """Likelihoods of answers; the model is left in the mode that it was in.

    Args:
        model: the same in every process.
        completions: dealt to the processes.
        dtype: of the computation.
        processes: of the run.
        progress: told how many more are done by all processes, as far as this one can tell.

    Raises:
        DivergedError: one is not a finite number.
    """
    training = model.training

    def some(places: list[int]) -> list[float]:
        found = response_logprobs(
            model,
            [completions[place] for place in places],
            dtype=dtype,
            progress=lambda done: progress(done * processes.world_size),
        )
        return [float(row.astype(np.float64).sum()) for row in found]

    sizes = [len(prompt) + len(answer) for prompt, answer in completions]
    sums = np.array(processes.share_out(sizes, some))
    model.train(training)
    if not np.isfinite(sums).all():
        raise DivergedError("the policy gives log-probabilities that are not finite numbers")
    return Likelihoods(sums, np.array([float(len(answer)) for _, answer in completions]))


@dataclass(frozen=True, slots=True)
class PairLikelihoods:
    """Likelihoods of both answers of each pair."""

    chosen: Likelihoods
    rejected: Likelihoods

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> PairLikelihoods:
        """The likelihoods that gave a tree."""
        return cls(Likelihoods.from_tree(tree["chosen"]), Likelihoods.from_tree(tree["rejected"]))

    def of(self, places: Sequence[int]) -> PairLikelihoods:
        """The likelihoods of some of the pairs."""
        return PairLikelihoods(self.chosen.of(places), self.rejected.of(places))

    def tree(self) -> dict[str, Any]:
        """The likelihoods for JSON."""
        return {"chosen": self.chosen.tree(), "rejected": self.rejected.tree()}

    def rewards(self, reference: PairLikelihoods, beta: float) -> tuple[Floats, Floats]:
        """β·(log π − log π_ref) of the chosen and of the rejected answers."""
        return (
            beta * (self.chosen.sums - reference.chosen.sums),
            beta * (self.rejected.sums - reference.rejected.sums),
        )


def pair_likelihoods(
    model: Any, rows: Sequence[PairTokens], dtype: str, *more: Any
) -> PairLikelihoods:
    """Likelihoods of both answers of each pair; the other arguments are as for `likelihoods`."""
    return PairLikelihoods(
        likelihoods(model, [(row.prompt, row.chosen) for row in rows], dtype, *more),
        likelihoods(model, [(row.prompt, row.rejected) for row in rows], dtype, *more),
    )


def pair_measures(
    now: PairLikelihoods, reference: PairLikelihoods, beta: float, prompts: Ints
) -> dict[str, Any]:
    """What summary.json says of held-out pairs.

    Args:
        now: by the policy.
        reference: by the policy that training began from.
        beta: scales implied rewards; the accuracy does not depend on it.
        prompts: of each pair; equal numbers are one prompt.
    """
    chosen, rejected = now.rewards(reference, beta)
    delta = chosen - rejected
    return {
        "implicit_accuracy": asdict(accuracy(delta, prompts)),
        "margin": float(delta.mean()),
        "ties": int((delta == 0).sum()),
        "calibration": asdict(calibration(delta)),
        "likelihood_accuracy": asdict(accuracy(now.chosen.sums - now.rejected.sums, prompts)),
        "mean_likelihood_accuracy": asdict(
            accuracy(now.chosen.means - now.rejected.means, prompts)
        ),
        "chosen_shift": float((now.chosen.sums - reference.chosen.sums).mean()),
        "rejected_shift": float((now.rejected.sums - reference.rejected.sums).mean()),
        "chosen_nll": now.chosen.nll,
    }


def pair_differences(
    now: PairLikelihoods, reference: PairLikelihoods, beta: float, prompts: Ints
) -> dict[str, Any]:
    """after − before of held-out pairs, each compared with itself, with 95 % intervals over
    prompts; arguments as for `pair_measures`."""
    chosen, rejected = now.rewards(reference, beta)

    def right(chosen: Floats, rejected: Floats) -> Floats:
        return (chosen > rejected).astype(np.float64)

    found = {
        "margin": chosen - rejected,
        "chosen_logprob": now.chosen.sums - reference.chosen.sums,
        "rejected_logprob": now.rejected.sums - reference.rejected.sums,
        "likelihood_accuracy": right(now.chosen.sums, now.rejected.sums)
        - right(reference.chosen.sums, reference.rejected.sums),
        "mean_likelihood_accuracy": right(now.chosen.means, now.rejected.means)
        - right(reference.chosen.means, reference.rejected.means),
    }
    return {name: estimate(values, prompts=prompts).as_dict() for name, values in found.items()}
