"""Evaluate a policy: what `guerdon eval policy` does.

publish the policy's weights               the sampler
sample and score every prompt              the sampler, the rewards    → scored.jsonl
log-probabilities, by policy and reference neither                     → measured.jsonl
measure                                    neither                     → evaluation.json
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.measuring.kl_estimate import kl_estimate
from guerdon.trainer.common.models import published_model
from guerdon.trainer.common.models.transformers_logging import quiet
from guerdon.trainer.common.policy_folder import SAMPLES
from guerdon.trainer.common.progress import Bar
from guerdon.trainer.common.report import say
from guerdon.trainer.common.run_folder import PLOTS, write_json, write_whole
from guerdon.trainer.common.run_state import package_versions, rounded
from guerdon.trainer.common.services.connections import Connections
from guerdon.trainer.common.services.credentials import reach
from guerdon.trainer.common.services.drawing import Drawing, draw_missing
from guerdon.trainer.common.services.inputs import show_prompts
from guerdon.trainer.common.services.reward_requests import RequestRules
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.scored_store import SCORED, ScoredGroups
from guerdon.trainer.common.services.types import Group, Ints
from guerdon.trainer.common.services.weights import Weights
from guerdon.trainer.common.trl.completions import Floats, response_logprobs
from guerdon.trainer.evaluate.policy.answer_scorers import AnswerScorers, check_version
from guerdon.trainer.evaluate.policy.baseline import Baseline
from guerdon.trainer.evaluate.policy.columns import (
    HARM,
    HELDOUT,
    LOGPROB,
    MEASURED,
    MISMATCH,
    REFERENCE,
    Columns,
)
from guerdon.trainer.evaluate.policy.folder import EVALUATION, STATE, EvalFolder, EvalState
from guerdon.trainer.evaluate.policy.inputs import EvalInputs, read_inputs
from guerdon.trainer.evaluate.policy.plots import draw_plots
from guerdon.trainer.evaluate.policy.result import Measurement, terms
from guerdon.trainer.evaluate.policy.settings import EvalSettings


def evaluate_policy(settings: EvalSettings, folder: EvalFolder, console: Console) -> dict[str, Any]:
    """The whole evaluation, or what is left of it; what is also in evaluation.json.

    Args:
        settings: of the evaluation.
        folder: looked at, not begun.
        console: for a person.

    Raises:
        TrainingError: a service stayed away or refused; what was scored is on the disk.
        DataError: the baseline can't be compared with.
    """
    inputs = read_inputs(settings)
    baseline = Baseline.read(settings.baseline) if settings.baseline else None
    if baseline:
        baseline.check(terms(settings, inputs))
    show_prompts("prompts", inputs.prompts, console)
    folder.begin()
    with quiet():
        return _Run(settings, inputs, folder, console, baseline).run()


class _Run:
    """The phases, each of which is passed over when it was done before."""

    def __init__(
        self,
        settings: EvalSettings,
        inputs: EvalInputs,
        folder: EvalFolder,
        console: Console,
        baseline: Baseline | None,
    ) -> None:
        self.settings, self.inputs, self.folder = settings, inputs, folder
        self.console, self.baseline = console, baseline
        self.state = EvalState.read(folder.path / STATE)
        self.scored = ScoredGroups(
            folder.path / SCORED, inputs.prompts, settings.samples_per_prompt
        )
        self.columns = Columns(folder.path / MEASURED, settings.samples_per_prompt)
        self._model: Any = None
        self._check_same()

    def run(self) -> dict[str, Any]:
        """All phases; what was found."""
        if self.scored.missing:
            asyncio.run(self._sample())
        elif self.baseline:
            self.baseline.check_revisions(self.state.rewards)
        for name, asked in ((HELDOUT, self.settings.heldout_reward), (HARM, self.settings.harm)):
            if asked and self.columns.missing(name, self.scored.groups):
                raise OutputError(f"{self.folder.path / MEASURED} is damaged: --overwrite it")
        self._compute(LOGPROB)
        if not self.inputs.is_reference:
            self._compute(REFERENCE)
        return self._finish()

    def _check_same(self) -> None:
        """Figures of two policies are never mixed.

        Raises:
            OutputError: the weights are not those of the earlier part.
        """
        for name in ("policy", "reference"):
            key = f"{name}_sha256"
            before, now = getattr(self.state, key), getattr(self.inputs, key)
            if before and before != now:
                raise OutputError(
                    f"{self.folder.path} was begun with other weights of the {name} "
                    f"({before[:12]}…, not {now[:12]}…): begin with --overwrite"
                )
            setattr(self.state, key, now)

    async def _sample(self) -> None:
        """Publish the policy, then sample and score what is not there yet."""
        if self.scored:
            say(self.console, f"resuming with {len(self.scored)} prompts sampled and scored")
        # The version tells the weights: another's on the same sampler are not taken for ours.
        version = 1 + int(self.inputs.policy_sha256[:6], 16)
        rules = RequestRules.of(self.settings, self.inputs.run.tokenizer, self.inputs.prompts)
        harm = RewardSource(
            [self.settings.harm] if self.settings.harm else [],
            setting="harm",
            rules=replace(rules, refused="stop"),  # a penalty would count as harmless
            **reach(self.settings),
        )

        async def make(dtype: str, canaries: Sequence[Ints]) -> Weights:
            return await asyncio.to_thread(
                published_model.weights,
                self._policy(),
                version,
                dtype,
                canaries,
                computed=self.settings.dtype,
            )

        async with Connections(
            self.settings,
            self.inputs.run,
            partial(Drawing, self.settings, seeded=True),
            str(self.folder.path / "weights"),
            make,
        ) as services:
            try:
                scorers = AnswerScorers(services.rewards, services.heldout, harm, self.columns)
                await self._start(services, scorers)
                await self._draw(services, scorers, version)
            finally:
                await harm.close()
                faults = services.faults
                faults["services"] += harm.faults_survived
                self.state.survived(faults)

    async def _start(self, services: Connections[Drawing], scorers: AnswerScorers) -> None:
        """The reward models first: what they say may end it before the sampler is touched."""
        scorers.pin(self.state.rewards)
        await scorers.start()
        self.state.rewards = scorers.state()
        if self.baseline:
            self.baseline.check_revisions(self.state.rewards)
        self.state.save()
        say(self.console, f"publishing {self.settings.policy} to the sampler")
        with self.state.phase("publish"):
            await services.start()

    async def _draw(
        self, services: Connections[Drawing], scorers: AnswerScorers, version: int
    ) -> None:
        def check(group: Group) -> None:
            check_version(group, version, self.settings.sampler)

        with self.state.phase("sample"):
            await draw_missing(
                services.rollouts,
                self.scored,
                scorers,
                self.console,
                in_flight=self.settings.in_flight,
                check=check,
            )

    def _compute(self, name: str) -> None:
        """Log-probabilities by one of the policies, group by group: a resumed run's are the same.

        It is the estimator of the recipes' `eval/kl`.
        """
        missing = self.columns.missing(name, self.scored.groups)
        if not missing:
            return
        own = name == LOGPROB
        what = "policy" if own else "reference"
        with self.state.phase("divergence"):
            model = self._policy() if own else published_model.load(self.inputs.reference)
            self._model = None  # not two of them at once
            for group in self._shown(f"log-probabilities by the {what}", missing):
                found = response_logprobs(
                    model,
                    [sample.completion for sample in group.samples],
                    temperature=self.settings.temperature,
                    dtype=self.settings.dtype,
                )
                values = {name: [float(x_T.astype(np.float64).sum()) for x_T in found]}
                if own:
                    values[MISMATCH] = _mismatch(group, found)
                self.columns.add(group.task.uid, values)

    def _shown(self, text: str, groups: Sequence[Group]) -> Iterator[Group]:
        with Bar(self.console, text, len(groups)) as bar:
            if bar.disable:
                say(self.console, f"{text}, of {len(groups)} prompts")
            for done, group in enumerate(groups, 1):
                yield group
                bar.move(done)

    def _finish(self) -> dict[str, Any]:
        """The rows, the plots, and last the figures."""
        measured = Measurement(self.settings, self.inputs, self.scored.groups, self.columns)
        about = terms(self.settings, self.inputs) | {"revisions": self.state.rewards}
        found = about | measured.found(about, self.baseline)
        found |= {
            "baseline": self.settings.baseline or None,
            "faults": self.state.faults,
            "seconds": rounded(self.state.seconds),
            "versions": package_versions("torch", "transformers", "accelerate", "numpy"),
        }
        lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) for row in measured.rows]
        with self._writing():
            write_whole(self.folder.path / SAMPLES, "".join(line + "\n" for line in lines))
            if self.settings.plots:
                draw_plots(self.folder.path / PLOTS, found, measured.rows, self.baseline)
            write_json(self.folder.path / EVALUATION, found)
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"can't write to {self.folder.path}: {error}") from error

    def _policy(self) -> Any:
        if self._model is None:
            self._model = published_model.load(self.inputs.run.policy)
        return self._model


def _mismatch(group: Group, own: Sequence[Floats]) -> list[float]:
    """Σ_t k3 of KL(sampler ‖ policy) of each completion in nats.

    Args:
        group: with the log-probabilities by which it was drawn.
        own: those by the policy, as it is computed here.
    """
    found = []
    for sample, own_T in zip(group.samples, own, strict=True):
        drawn_T = torch.from_numpy(sample.behaviour_logprobs_T)
        k3_T = kl_estimate(drawn_T, torch.from_numpy(own_T), "k3")
        found.append(float(k3_T.double().sum()))
    return found
