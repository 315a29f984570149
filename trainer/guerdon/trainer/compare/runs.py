"""What is known of a run. Pure values; `run_folders` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from guerdon.trainer.common.measuring.statistics import Estimate

Reward = tuple[float, str]
"""Weight, and the name of a served model or of a rule."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms on which a policy was measured. Numbers of other terms can't be compared."""

    prompts: str
    """SHA-256 of the prompts file; where it isn't known, the file's name."""
    source: str
    """The prompts file as it was given: to be read, not compared."""
    count: int
    """Prompts."""
    rewards: tuple[Reward, ...]
    heldout: str
    """The held-out reward model, or empty."""
    reference: str
    """What KL is against."""
    max_tokens: int
    temperature: float
    revisions: str = ""
    """Revisions of the reward models, where they are known; compared only."""
    heldout_revision: str = ""
    """Revision of the held-out reward model."""
    reference_sha256: str = ""
    """SHA-256 of the reference's weights, where it is known."""
    columns: tuple[str, str] = ("prompt", "answer")
    """The columns of prompt and answer."""
    split: str = "test"
    """The split of the prompts, where they are a data set."""
    own: bool = False
    """The run measured itself, while it trained: `guerdon eval policy` did not."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal where rewards and KL may stand on the same axes."""
        return (
            self.prompts,
            self.count,
            self.columns,
            self.split,
            self.rewards,
            self.revisions,
            self.reference_sha256 or self.reference,
            self.max_tokens,
            self.temperature,
            self.own,
        )

    @property
    def heldout_key(self) -> tuple[str, str]:
        """Equal where held-out rewards may, too; empty where there is none."""
        return (self.heldout, self.heldout_revision)


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """A policy's first completion to a prompt. Untrusted text."""

    prompt: str
    response: str
    reward: float
    heldout: float | None = None


@dataclass(frozen=True, slots=True)
class RunMeasures:
    """One policy on held-out prompts."""

    estimates: Mapping[str, Estimate]
    """Estimates by measure: `reward`, perhaps `heldout_reward`, `kl`, `length`, `finished`, …"""
    prompts: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Each prompt's mean of `reward` and `heldout_reward`, where every completion is known."""
    distinct: Mapping[int, float] = field(default_factory=dict)
    """n to distinct-n."""
    wins: Mapping[str, Estimate] = field(default_factory=dict)
    """The share of wins, by reward model."""
    against: str = ""
    """The policy that was won over."""
    subgroups: Mapping[str, Mapping[str, Mapping[str, Estimate]]] = field(default_factory=dict)
    """Field, value, measure."""
    answers: Mapping[int, ShownAnswer] = field(default_factory=dict)
    """Answers by the prompt's place."""
    samples_per_prompt: int = 0
    """0 where it isn't known."""
    warnings: tuple[str, ...] = ()

    @property
    def reward(self) -> Estimate:
        """The mean reward."""
        return self.estimates["reward"]


@dataclass(frozen=True, slots=True)
class Point:
    """A policy in the middle of its training, on held-out prompts."""

    step: int
    reward: float
    kl: float
    heldout: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run of any recipe, or the evaluation of a policy that no run here made."""

    path: Path
    name: str
    """Among the runs that are compared, its own."""
    recipe: str
    """`sft`, `dpo`, …; empty for a plain evaluation."""
    base: str
    """The policy that training began from; of a plain evaluation, the policy itself."""
    data: str = ""
    """The data that was trained on."""
    seed: int | None = None
    steps: int | None = None
    minutes: float | None = None
    terms: Terms | None = None
    """The terms of `after`; None where nothing was measured by sampling."""
    after: RunMeasures | None = None
    before: RunMeasures | None = None
    """The policy that training began from, as the run itself measured it."""
    difference: Mapping[str, Estimate] = field(default_factory=dict)
    """after − before over the same prompts, as the run itself measured it."""
    curve: tuple[Point, ...] = ()
    """While it trained, by the run's own terms."""
    curve_terms: Terms | None = None
    accuracy: tuple[float, float, float] | None = None
    """Share of held-out pairs that the implied reward gets right, with its interval."""
    nll: tuple[float, float] | None = None
    """Nats a token of held-out answers, before and after."""
    warnings: tuple[str, ...] = ()
    is_start: bool = False
    """Whether it is the evaluation of the policy that KL is measured against."""
