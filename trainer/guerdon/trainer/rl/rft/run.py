"""RFT: sample from the first policy once, keep the good completions, fine-tune on them.

Rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825; RAFT, Dong et al. 2023,
arXiv:2304.06767). In the unified view of DeepSeekMath (arXiv:2402.03300, section 5.2.1) its
gradient coefficient is 1 for accepted completions and 0 for the others, and what is sampled is
the first policy, once.

    publish the first policy, evaluate it        the sampler, the rewards
    sample and score every prompt n times        the sampler, the rewards   → scored.jsonl
    keep, fine-tune                              neither                    → checkpoints/
    publish the tuned policy, evaluate it        the sampler, the rewards
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from guerdon.trainer.common.errors import DataError, TrainingError
from guerdon.trainer.common.measuring.monitors import warn
from guerdon.trainer.common.measuring.policy_evaluation import Evaluation, evaluate
from guerdon.trainer.common.measuring.samples import SampleTable
from guerdon.trainer.common.metrics_log import MetricsLog
from guerdon.trainer.common.models import published_model
from guerdon.trainer.common.models.language_model import merged, with_lora
from guerdon.trainer.common.models.transformers_logging import quiet
from guerdon.trainer.common.processes import launched
from guerdon.trainer.common.report import say
from guerdon.trainer.common.run_folder import kept_rows, last_checkpoint
from guerdon.trainer.common.run_state import RunState
from guerdon.trainer.common.services.connections import Connections
from guerdon.trainer.common.services.drawing import Drawing, draw_missing
from guerdon.trainer.common.services.inputs import RunInputs
from guerdon.trainer.common.services.scored_store import SCORED, ScoredGroups
from guerdon.trainer.common.services.types import Group, Ints, Sample
from guerdon.trainer.common.services.weights import Weights
from guerdon.trainer.common.trackers import Trackers
from guerdon.trainer.common.trl.completions import response_logprobs
from guerdon.trainer.rl.folder import RLFolder
from guerdon.trainer.rl.inputs import read_inputs, show_inputs
from guerdon.trainer.rl.learner.rejection import keep
from guerdon.trainer.rl.report.plots import draw_plots
from guerdon.trainer.rl.report.progress import RunProgress
from guerdon.trainer.rl.report.step_metrics import group_metrics
from guerdon.trainer.rl.report.summary import make_summary
from guerdon.trainer.rl.rft import fine_tuning as sft
from guerdon.trainer.rl.settings import RFTSettings


@dataclass
class RFTState(RunState):
    """What is done. Saved whole, or as it was before."""

    before: dict[str, Any] | None = None
    """The first policy on held-out prompts."""
    after: dict[str, Any] | None = None
    """The tuned one."""
    dtype: str = "float32"
    """The dtype of the published weights, and so of the policy that is saved."""

    @classmethod
    def mend(cls, values: dict[str, Any]) -> None:
        """Put right in place what JSON can't hold as it was: its keys are texts."""
        for name in ("before", "after"):
            if values[name]:
                values[name]["prompts"] = {
                    key: {int(index): value for index, value in means.items()}
                    for key, means in values[name]["prompts"].items()
                }

    def evaluations(self) -> list[Evaluation]:
        """The evaluations that were made, in order."""
        trees = [tree for tree in (self.before, self.after) if tree is not None]
        return [Evaluation.from_tree(tree) for tree in trees]


STATE = "rft.json"
FIRST, TUNED = 1, 2
"""Weight versions: the policy as it was, and with what it learned."""
_BEFORE, _AFTER, _DRAWN = 1, 2, 3
"""Streams of seeds; 0 is of tasks in a buffer, which RFT has none of."""


def train(
    settings: RFTSettings, folder: RLFolder, console: Console, *, resume: bool = False
) -> dict[str, Any]:
    """The whole run, or what is left of it; what is also in summary.json.

    Args:
        settings: of the run.
        folder: looked at, not begun.
        console: for a person.
        resume: as the folder was told: what is there decides where the run goes on.

    Raises:
        TrainingError: a service stayed away, nothing was kept, or training diverged.
    """
    if launched() > 1:
        raise TrainingError("rft trains in one process: start it without a launcher")
    inputs = read_inputs(settings)
    show_inputs(inputs, console)
    folder.begin()
    run = RFTRun(settings, inputs, folder, console)
    try:
        with quiet():
            return run.run()
    finally:
        run.trackers.finish()


class RFTRun:
    """The phases, each of which is passed over when it was done before.

    Args:
        settings: of the run.
        inputs: read and checked.
        folder: begun.
        console: for a person.
    """

    def __init__(
        self, settings: RFTSettings, inputs: RunInputs, folder: RLFolder, console: Console
    ) -> None:
        self.settings, self.inputs, self.folder, self.console = settings, inputs, folder, console
        self.state = RFTState.read(folder.checkpoints / STATE)
        self.scored = ScoredGroups(
            folder.path / SCORED, inputs.prompts, settings.samples_per_prompt
        )
        done = last_checkpoint(folder.checkpoints)
        self.done = int(done.name.rpartition("-")[2]) if done else 0
        self.log = MetricsLog(folder.metrics, folder.rewind(self.done))
        self.samples = SampleTable(folder.samples, settings.sample_rows)
        self.trackers = Trackers(settings, folder.path)

    def run(self) -> dict[str, Any]:
        """All phases; the summary."""
        with self.state.phase("load"):
            model = published_model.load(self.inputs.policy)
        if self.state.before is None or self.scored.missing:
            asyncio.run(self._sample(model))
        kept = self._keep()
        steps, model = self._fine_tune(model, kept)
        if self.state.after is None or self.state.after["step"] != steps:
            asyncio.run(self._measure(model, steps))
        return self._finish(model, kept)

    async def _sample(self, model: Any) -> None:
        """Evaluate the first policy, and sample and score what is not there yet."""
        if self.scored:
            say(self.console, f"resuming with {len(self.scored)} prompts sampled and scored")
        async with self._services(model, FIRST) as services:
            await self._start(services)
            if self.state.before is None:
                with self.state.phase("evaluate"):
                    groups, other = await services.held_out(self.settings.eval_samples, _BEFORE)
                    zeros = [[0.0] * len(group.samples) for group in groups]
                    self._evaluated("before", evaluate(0, groups, kl=zeros, heldout=other), groups)
            with self.state.phase("sample"):
                await draw_missing(
                    services.rollouts, self.scored, services.rewards, self.console, stream=_DRAWN
                )
            self.state.survived(services.faults)

    def _keep(self) -> list[Sample]:
        """What is trained on: the same whenever it is asked, by the seed.

        Raises:
            DataError: nothing is.
        """
        groups = self.scored.groups
        kept = keep(groups, self.settings, np.random.default_rng(self.settings.seed))
        if not kept:
            samples = [sample for group in groups for sample in group.samples]
            best = max(sample.reward for sample in samples)
            cut = sum(not sample.finished for sample in samples)
            rule = f" and threshold is {self.settings.threshold:g}"
            raise DataError(
                f"no completion was kept: the best reward is {best:g}"
                f"{rule if self.settings.keep == 'threshold' else ''}; "
                f"{cut} of {len(samples)} were cut at max_tokens"
            )
        drawn = sum(len(group.samples) for group in groups)
        if not any("accepted" in row for row in self.log.rows):
            kept_rows(self.folder.samples, lambda row: row["kind"] != "train")
            self.samples.add(0, groups, "train")
            share = {"accepted": len(kept) / drawn, "step": 0, "version": FIRST}
            self._logged(group_metrics(groups, FIRST) | share)
        prompts = len({sample.task_uid for sample in kept})
        say(self.console, f"kept {len(kept)} of {drawn} completions, of {prompts} prompts")
        return kept

    def _fine_tune(self, model: Any, kept: list[Sample]) -> tuple[int, Any]:
        """Fine-tuning; how many steps it took, and the model without LoRA."""
        if self.done:
            say(self.console, f"resuming fine-tuning at step {self.done}")
        model = adapted(model, self.settings)
        with ExitStack() as stack, self.state.phase("learn") as spend:
            shown: list[RunProgress] = []
            before = max((row.get("sft_tokens", 0.0) for row in self.log.rows), default=0.0)

            def report(step: int, steps: int, row: Mapping[str, float]) -> None:
                if not shown:
                    shown.append(stack.enter_context(RunProgress(self.console, steps, step - 1)))
                tokens = before + row["sft_tokens"]  # TRL counts from the last start on
                shown[0].add(self._logged({"step": step, **row, "sft_tokens": tokens}))
                spend()

            steps = sft.fine_tune(
                model, self.inputs.tokenizer, kept, self.settings, self.folder.checkpoints, report
            )
        return steps, merged(model)

    async def _measure(self, model: Any, steps: int) -> None:
        """Publish what was learned, and evaluate it."""
        async with self._services(model, TUNED) as services:
            await self._start(services)
            with self.state.phase("evaluate"):
                groups, other = await services.held_out(self.settings.eval_samples, _AFTER)
                kl = self._divergence(model, groups)
                self._evaluated("after", evaluate(steps, groups, kl=kl, heldout=other), groups)
            self.state.survived(services.faults)

    def _divergence(self, model: Any, groups: list[Group]) -> list[list[float]]:
        """KL(π_θ ‖ π_ref) of each completion in nats, by Σ_t k1, at the sampling temperature."""
        samples = [sample.completion for group in groups for sample in group.samples]
        how: Any = {"temperature": self.settings.temperature, "dtype": self.settings.dtype}
        ours = response_logprobs(model, samples, **how)
        reference = published_model.load(self.inputs.policy)
        theirs = response_logprobs(reference, samples, **how)
        sums = iter([float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)])
        return [[next(sums) for _ in group.samples] for group in groups]

    def _evaluated(self, kind: str, found: Evaluation, groups: list[Group]) -> None:
        """Write an evaluation down. It counts once the state says so: half of one is forgotten."""
        kept_rows(self.folder.samples, lambda row: row["kind"] != kind)
        self._forget_metrics(lambda row: "eval/reward" in row and row["step"] == found.step)
        self.samples.add(found.step, groups, kind)
        row = self._logged(found.metrics())
        with RunProgress(self.console, found.step) as shown:
            shown.add(row)
        setattr(self.state, kind, found.tree())
        self.state.save()

    def _finish(self, model: Any, kept: list[Sample]) -> dict[str, Any]:
        """The policy, the plots, and last the summary."""
        evaluations = self.state.evaluations()
        with self.state.phase("save"):
            computed = self.settings.dtype
            self.folder.publish_final(
                lambda part: published_model.save(
                    model, self.inputs.tokenizer, part, self.state.dtype, computed=computed
                )
            )
        if self.settings.plots:
            with self.state.phase("plots"):
                draw_plots(self.folder)
        summary = make_summary(
            self.settings,
            rows=self.log.rows,
            evaluations=evaluations,
            seconds=self.state.seconds,
            faults=self.state.faults,
            warnings=warn(evaluations),
            more={"kept": len(kept), "kept_prompts": len({s.task_uid for s in kept})},
        )
        self.folder.write_summary(summary)
        return summary

    def _services(self, model: Any, version: int) -> Connections[Drawing]:
        """Connections that live for one phase, and publish a model without LoRA."""

        async def make(dtype: str, canaries: Sequence[Ints]) -> Weights:
            return await asyncio.to_thread(
                published_model.weights,
                model,
                version,
                dtype,
                canaries,
                computed=self.settings.dtype,
            )

        return Connections(
            self.settings,
            self.inputs,
            partial(Drawing, self.settings, seeded=self.settings.deterministic),
            str(self.folder.path / "weights"),
            make,
            publish_dtype=self.settings.publish_dtype,
        )

    async def _start(self, services: Connections[Drawing]) -> None:
        with self.state.phase("publish"):
            services.pin(self.state.rewards)
            await services.start()
            self.state.rewards, self.state.dtype = services.revisions, services.dtype

    def _logged(self, row: dict[str, float]) -> dict[str, float]:
        self.log.add(row)
        self.trackers.log(row)
        return row

    def _forget_metrics(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        kept_rows(self.folder.metrics, lambda row: not unwanted(row))
        self.log.rows = [row for row in self.log.rows if not unwanted(row)]


def adapted(model: Any, settings: RFTSettings) -> Any:
    """The model with LoRA around it, where the settings say so."""
    return with_lora(model, settings.lora_r, settings.lora_alpha) if settings.lora_r else model
