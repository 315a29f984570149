"""The run of every algorithm but RFT: sample, score, learn, publish, over and over.

    publish the first weights, evaluate them
    every step:  wait for a batch          sampler and rewards work on beside all of this
                 learn from it             in a thread, on all ranks
                 publish the new weights
                 now and then evaluate, save a checkpoint
    evaluate, save the policy

With η = 0 nothing is sampled between a batch and the weights that it makes; with η > 0 sampling,
scoring and learning overlap.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console

from guerdon.trainer.common.measuring.monitors import (
    policy_mismatch,
    rounded_for_sampler,
    warn,
)
from guerdon.trainer.common.measuring.policy_evaluation import Evaluation, evaluate
from guerdon.trainer.common.measuring.samples import SampleTable
from guerdon.trainer.common.metrics_log import MetricsLog
from guerdon.trainer.common.models.implicit_manifest import leave_reward
from guerdon.trainer.common.models.transformers_logging import quiet
from guerdon.trainer.common.report import say
from guerdon.trainer.common.run_state import timed_phase
from guerdon.trainer.common.services.connections import Connections
from guerdon.trainer.common.services.drawing import Republish
from guerdon.trainer.common.services.inputs import RunInputs
from guerdon.trainer.common.services.prompts import PromptOrder
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.sampling import GroupSampler
from guerdon.trainer.common.services.utilisation import RolloutStats
from guerdon.trainer.common.trackers import Trackers
from guerdon.trainer.rl.checkpoint import Checkpoints, TrainingCheckpoint
from guerdon.trainer.rl.folder import RLFolder
from guerdon.trainer.rl.inputs import read_inputs, show_inputs
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.algorithms.base import ImpliedReward
from guerdon.trainer.rl.learner.learner import Learner
from guerdon.trainer.rl.learner_ranks import LearnerOnAllRanks
from guerdon.trainer.rl.report.plots import draw_plots
from guerdon.trainer.rl.report.progress import RunProgress
from guerdon.trainer.rl.report.step_metrics import group_metrics, speed_metrics
from guerdon.trainer.rl.report.summary import make_summary
from guerdon.trainer.rl.rollout.rollouts import Rollouts
from guerdon.trainer.rl.settings import OnlineSettings


def train(
    settings: OnlineSettings, folder: RLFolder, console: Console, *, resume: bool = False
) -> dict[str, Any]:
    """The whole run, or what is left of it; what is also in summary.json (empty on other ranks).

    Args:
        settings: of the run.
        folder: looked at, not begun.
        console: for a person.
        resume: go on from the newest checkpoint, if there is one.

    Raises:
        TrainingError: a service stayed away or refused, or training diverged. The checkpoints
            are whole.
    """
    inputs = read_inputs(settings)
    show_inputs(inputs, console)
    with quiet():
        learners = LearnerOnAllRanks(Learner(settings, build(settings), inputs.policy))
    if not learners.main:
        learners.follow()
        return {}
    folder.begin()
    run = OnlineRun(settings, inputs, folder, console, learners)
    try:
        return asyncio.run(run.run(resume=resume))
    finally:
        run.learning.shutdown()
        if run.trackers is not None:
            run.trackers.finish()
        learners.dismiss()


class OnlineRun:
    """One run, on the rank that drives.

    Args:
        settings: of the run.
        inputs: read and checked.
        folder: begun.
        console: for a person.
        learners: of all ranks.
    """

    def __init__(
        self,
        settings: OnlineSettings,
        inputs: RunInputs,
        folder: RLFolder,
        console: Console,
        learners: LearnerOnAllRanks,
    ) -> None:
        self.settings, self.inputs, self.folder, self.console = settings, inputs, folder, console
        self.learners, self.learner = learners, learners.learner
        self.trackers: Trackers | None = None
        self.learning = ThreadPoolExecutor(1, thread_name_prefix="guerdon-learner")
        """One thread for all that computes: weights are never read in the middle of a step, and a
        step's memory, which the allocator keeps for the thread that freed it, is kept once."""
        self._checkpoints = Checkpoints(folder.checkpoints, settings.keep_checkpoints)
        self._samples = SampleTable(folder.samples, settings.sample_rows)
        self._log = MetricsLog(folder.metrics, [])
        self._evaluations: list[Evaluation] = []
        self._warnings: list[str] = []
        self._seconds: dict[str, float] = {}
        self._faults_before: dict[str, int] = {}
        self._mark: tuple[float, RolloutStats, dict[str, float]] = (0.0, RolloutStats(), {})
        self._services = Connections(
            settings,
            inputs,
            self._new_rollouts,
            str(folder.path / "weights"),
            lambda dtype, canaries: self._off_loop("weights", dtype, canaries),
            publish_dtype=settings.publish_dtype,
            on_lost=self._note_lost,
        )
        self._rollouts = self._services.rollouts

    def _new_rollouts(
        self, sampler: GroupSampler, rewards: RewardSource, republish: Republish
    ) -> Rollouts:
        return Rollouts(
            self.settings,
            PromptOrder(self.inputs.prompts, self.settings.seed),
            sampler,
            rewards,
            republish=republish,
            last_version=self.settings.steps,
        )

    async def run(self, *, resume: bool) -> dict[str, Any]:
        """Train from where the run is to its end; the summary."""
        checkpoint = self._checkpoints.latest() if resume else None
        async with self._services:
            await self._begin(checkpoint)
            with RunProgress(self.console, self.settings.steps, self.learner.step_count) as shown:
                self._shown = shown
                self._warn(rounded_for_sampler(self.settings.dtype, self._services.dtype))
                if not self._evaluations:
                    await self._evaluate("before")
                self._mark = (time.monotonic(), self._rollouts.stats(), dict(self._seconds))
                while self.learner.step_count < self.settings.steps:
                    await self._step()
                if self._evaluations[-1].step != self.learner.step_count:
                    await self._evaluate("after")
            return await self._finish()

    async def _begin(self, checkpoint: TrainingCheckpoint | None) -> None:
        """Take up a checkpoint, give the sampler the weights, and begin to sample."""
        step = -1  # without a checkpoint, nothing of an earlier part counts
        if checkpoint is not None:
            step = checkpoint.step
            say(self.console, f"resuming after step {step}")
            await self._off_loop("load_state", checkpoint.load("learner"))
            self._load(checkpoint.load("run"))
            self._checkpoints.forget_after(step)
        self._log = MetricsLog(self.folder.metrics, self.folder.rewind(step))
        self.trackers = Trackers(self.settings, self.folder.path, done=max(step, 0))
        with self._phase("publish"):
            await self._services.start()

    async def _step(self) -> None:
        """One update of the policy, from its batch to its line of metrics."""
        version = self.learner.version
        self._shown.phase("waiting for rollouts")
        with self._phase("wait"):
            groups = await self._rollouts.next_batch(version)
        self._shown.phase("learning")
        with self._phase("learn"):
            learned = await self._off_loop("step", groups)
        self._shown.phase("publishing")
        with self._phase("publish"):
            await self._services.publish()
        self._rollouts.published(self.learner.version)
        step = self.learner.step_count
        self._samples.add(step, groups)
        row = group_metrics(groups, version) | learned
        row |= self._speed(int(row["tokens"]))
        row |= {"step": step, "version": self.learner.version, "faults": self._faults["services"]}
        self._write(row)
        self._warn(policy_mismatch(row))
        self._warn(self.learner.algorithm.warning(row))
        every = self.settings.eval_every
        if step >= self.settings.steps:
            await self._evaluate("after")
        elif every and step % every == 0:
            await self._evaluate("eval")
        if self.settings.checkpoint_every and (
            step % self.settings.checkpoint_every == 0 or step == self.settings.steps
        ):
            await self._save()

    def _speed(self, tokens: int) -> dict[str, float]:
        """The metrics of speed since this was last called: evaluations and checkpoints included."""
        now, stats, spent = time.monotonic(), self._rollouts.stats(), dict(self._seconds)
        then, stats_then, spent_then = self._mark
        self._mark = (now, stats, spent)
        phases = {name: value - spent_then.get(name, 0.0) for name, value in spent.items()}
        return speed_metrics(tokens, phases, now - then, stats - stats_then)

    async def _evaluate(self, kind: str) -> None:
        """Measure the published weights on the held-out prompts."""
        self._shown.phase("evaluating")
        with self._phase("evaluate"):
            step = self.learner.step_count
            groups, other = await self._services.held_out(
                self.settings.eval_samples, stream=1 + step
            )
            kl = await self._off_loop("divergence", groups)
            found = evaluate(step, groups, kl=kl, heldout=other)
        self._evaluations.append(found)
        self._samples.add(step, groups, kind)
        self._write(found.metrics())
        for text in warn(self._evaluations):
            self._warn(text)

    def _note_lost(self) -> None:
        self._shown.note("the sampler lost its weights; they are published to it again")

    async def _save(self) -> None:
        self._shown.phase("saving a checkpoint")
        with self._phase("checkpoint"):
            learner = await self._off_loop("state")
            parts = {"learner": learner, "run": self._state()}
            await asyncio.to_thread(self._checkpoints.save, self.learner.step_count, parts)

    def _state(self) -> dict[str, Any]:
        return {
            "rollouts": self._rollouts.state(),
            "heldout": self._services.heldout.state(),
            "evaluations": [found.tree() for found in self._evaluations],
            "warnings": self._warnings,
            "seconds": self._seconds,
            "faults": self._faults,
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._rollouts.load_state(state["rollouts"])
        self._services.heldout.load_state(state["heldout"])
        self._evaluations = [Evaluation.from_tree(tree) for tree in state["evaluations"]]
        self._warnings = list(state["warnings"])
        self._seconds = dict(state["seconds"])
        self._faults_before = dict(state["faults"])

    async def _finish(self) -> dict[str, Any]:
        """The policy, the plots, and last the summary."""
        with self._phase("save"):
            tokenizer = self.inputs.tokenizer

            def write(part: Any) -> None:
                self.learners.call("save_final", part, self._services.dtype)
                tokenizer.save_pretrained(part)

            await asyncio.to_thread(self.folder.publish_final, write)
            if implied := self.learner.algorithm.implied_reward():
                await asyncio.to_thread(self._leave_reward, implied)
        if self.settings.plots:
            with self._phase("plots"):
                draw_plots(self.folder)
        summary = make_summary(
            self.settings,
            rows=self._log.rows,
            evaluations=self._evaluations,
            seconds=self._seconds,
            faults=self._faults,
            warnings=self._warnings,
        )
        self.folder.write_summary(summary)
        return summary

    def _leave_reward(self, implied: ImpliedReward) -> None:
        """Leave the manifest of the reward that the policy implies."""
        settings, prompts = self.settings, self.inputs.prompts
        leave_reward(
            self.folder,
            policy=settings.policy,
            resolved=self.inputs.policy,
            template=self.inputs.tokenizer.chat_template,
            beta=implied.beta,
            train_data=f"{prompts.source} (sha256 {prompts.sha256})",
            training={
                "algorithm": settings.algorithm,
                "loss": implied.loss,
                "lr": settings.learning_rate,
                "seed": settings.seed,
                "steps": self.learner.step_count,
                "rewards": dict(self._services.rewards.weights),
            },
        )

    @property
    def _faults(self) -> dict[str, int]:
        """Survived so far, by kind, earlier parts of the run included."""
        found = self._services.faults
        return {name: count + self._faults_before.get(name, 0) for name, count in found.items()}

    def _write(self, row: dict[str, float]) -> None:
        self._log.add(row)
        assert self.trackers is not None
        self.trackers.log(self._log.rows[-1])
        self._shown.add(self._log.rows[-1])

    def _warn(self, text: str) -> None:
        """Say it, once in a run."""
        if text and text not in self._warnings:
            self._warnings.append(text)
            self._shown.note(text)

    async def _off_loop(self, method: str, *args: Any) -> Any:
        """Call all ranks' learners in a thread: sampling and scoring go on meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.learning, self.learners.call, method, *args)

    def _phase(self, name: str) -> AbstractContextManager[object]:
        return timed_phase(self._seconds, name)
