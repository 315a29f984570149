"""The commands of the comparison, in order, and when each is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.comparison.budgets import MAX_TOKENS, Budget, Options
from deploy.demo.policy import BASE
from deploy.demo.processes import flags

RUNS = ("sft", "dpo", "orpo", "rft", "ppo")


@dataclass(frozen=True, slots=True)
class Stage:
    """A command that leaves a folder, and the files that are there once it has ended well."""

    title: str
    command: tuple[str, ...]
    folder: Path
    ends: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether it has ended well."""
        return all((self.folder / name).exists() for name in self.ends)

    @property
    def resumed(self) -> tuple[str, ...]:
        """The command that begins it, or goes on with it."""
        begun = (self.folder / "config.toml").exists()
        return (*self.command, "--resume") if begun else self.command


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages of a comparison.

    Args:
        output: where all of it goes.
        budget: how much of everything.
        pairs: of the proxy, and of the held-out reward model.
        seed: of everything.
    """

    output: Path
    budget: Budget
    pairs: tuple[Path, Path]
    seed: int

    @property
    def models(self) -> dict[str, Path]:
        """The reward models' folders."""
        return {name: self.output / f"reward-{name}" for name in ("proxy", "heldout")}

    def on_files(self) -> list[Stage]:
        """What needs no service: both reward models, SFT, DPO, ORPO."""
        found = [
            self._stage(
                f"Train the {what} reward model",
                ("train", "reward"),
                self.models[name],
                ("guerdon.json", "model.safetensors"),
                self.budget.reward,
                seed=self.seed + place,
                base=BASE,
                train=pairs,
                eval="helpful-eval",
            )
            for place, (name, what, pairs) in enumerate(
                (
                    ("proxy", "proxy", self.pairs[0]),
                    ("heldout", "held-out", self.pairs[1]),
                )
            )
        ]
        for recipe, options in (
            ("sft", self.budget.sft),
            ("dpo", self.budget.dpo),
            ("orpo", self.budget.orpo),
        ):
            found.append(
                self._stage(
                    f"Train by {recipe.upper()} on the proxy's pairs",
                    ("train", recipe),
                    self.output / recipe,
                    ("summary.json", "final"),
                    options,
                    policy=BASE,
                    train=self.pairs[0],
                    eval="helpful-eval",
                )
            )
        return found

    def with_services(self, rewards: str, sampler: str) -> list[Stage]:
        """What asks the services: RFT, PPO, and all evaluations.

        Args:
            rewards: address of the reward server.
            sampler: address of the sampler.
        """
        services = {
            "sampler": sampler,
            "reward": f"{rewards}/proxy",
            "heldout-reward": f"{rewards}/heldout",
        }
        start = self.output / "start"
        found = [self._evaluation("the first policy", BASE, start, services)]
        for recipe, options in (("rft", self.budget.rft), ("ppo", self.budget.ppo)):
            found.append(
                self._stage(
                    f"Train by {recipe.upper()} on the proxy's rewards",
                    ("train", recipe),
                    self.output / recipe,
                    ("summary.json", "final"),
                    {"max-tokens": MAX_TOKENS, "eval-limit": 0} | options,
                    policy=BASE,
                    prompts="questions-train",
                    **{"eval-prompts": "questions-eval"},
                    **services,
                )
            )
        for recipe in RUNS:
            folder = self.output / recipe
            found.append(
                self._evaluation(
                    f"what {recipe.upper()} made",
                    folder / "final",
                    folder / "evaluation",
                    services | {"baseline": str(start)},
                )
            )
        return found

    def report(self) -> tuple[str, ...]:
        """The command that puts all of it side by side."""
        folders = [str(self.output / name) for name in ("start", *RUNS)]
        return ("compare", *folders, "--output", str(self.output / "report.html"))

    def _evaluation(
        self, what: str, policy: str | Path, folder: Path, services: Mapping[str, str]
    ) -> Stage:
        return self._stage(
            f"Evaluate {what}",
            ("eval", "policy"),
            folder,
            ("evaluation.json",),
            {"max-tokens": MAX_TOKENS} | self.budget.evaluation,
            policy=policy,
            reference=BASE,
            prompts="questions-eval",
            by="category",
            **services,
        )

    def _stage(
        self,
        title: str,
        command: Sequence[str],
        folder: Path,
        ends: tuple[str, ...],
        options: Options,
        *,
        seed: int | None = None,
        **files: str | Path,
    ) -> Stage:
        seed = self.seed if seed is None else seed
        given = {**files, **options, "seed": seed, "output": folder}
        return Stage(title, (*command, *flags(given)), folder, ends)
