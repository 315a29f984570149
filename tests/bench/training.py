"""A PPO step through the real parts: its rates, where its time goes, and what overlap gains."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.bench.common import BenchSettings, median, spread, table
from tests.bench.serving import serve
from tests.bench.steps import WARM_UP, Steps, ppo
from tests.support.sampler import running_sampler

from guerdon.client.testing import FakePolicyServer
from guerdon.models import resolve_model

BASE = "smollm2-135m-instruct"
STEPS = 8
BATCH = {
    "prompts_per_step": 4,
    "samples_per_prompt": 8,
    "max_tokens": 32,
    "micro_batch_tokens": 1024,
}
ETAS = (0, 2)

NO_DELAY = 0.02
"""Seconds of a completion, where the sampler should take as good as no time."""


def run(settings: BenchSettings) -> None:
    """Print rates and parts of a step at η = 0, and the ratio to η = 2."""
    threads = torch.get_num_threads()
    base = resolve_model(BASE)
    sampler = running_sampler(
        base,
        dtype=settings.dtype,
        threads=threads,
        kv_cache_gib=1,
        max_model_len=512,
        max_num_seqs=64,
        environment={"OMP_NUM_THREADS": str(threads)},
    )
    with serve(settings) as rewards, sampler as policy, tempfile.TemporaryDirectory() as scratch:

        def once(folder: Path, eta: int) -> Steps:
            return ppo(
                folder,
                sampler=policy.address,
                eta=eta,
                policy=BASE,
                steps=STEPS,
                reward=f"{rewards.address}/bench",
                checkpoint_every=STEPS,
                dtype=settings.dtype,
                **BATCH,
            )

        found = by_turns(Path(scratch), settings.rounds, once)
    title = (
        f"PPO, {BASE}, {settings.dtype}: {batch()}; "
        f"sampler, reward server and trainer with {threads} thread{'s' * (threads > 1)} each on "
        f"one machine; {settings.rounds} rounds, steps {WARM_UP + 1} to {STEPS}"
    )
    table(title, rates(found) + parts(found[0]), settings.console)


def overlap(settings: BenchSettings) -> None:
    """Print the ratio where the sampler is elsewhere: its completions take time, not this CPU.

    A run with as good as no delay says how long the learner and publishing take. Then every
    completion is given between half that time and all of it.
    """
    with tempfile.TemporaryDirectory() as scratch:

        def once(folder: Path, eta: int, delay: float) -> Steps:
            sampler = FakePolicyServer(delay=(delay / 2, delay), dtype=settings.dtype)
            with sampler:
                return ppo(
                    folder,
                    sampler=sampler.target,
                    eta=eta,
                    policy=BASE,
                    steps=STEPS,
                    verifier="length:24",
                    checkpoint_every=0,
                    dtype=settings.dtype,
                    **BATCH,
                )

        alone = once(Path(scratch) / "alone", 0, NO_DELAY)
        delay = median([a + b for a, b in work(alone)])
        found = by_turns(
            Path(scratch), settings.rounds, lambda folder, eta: once(folder, eta, delay)
        )
    table(
        f"overlap: {BASE}, {settings.dtype}, {batch()}; the fake sampler takes {delay / 2:.1f} to "
        f"{delay:.1f} s for each, all at once and on no core, and the learner with publishing "
        f"{delay:.1f} s; {settings.rounds} rounds, steps {WARM_UP + 1} to {STEPS}",
        rates(found),
        settings.console,
    )


def batch() -> str:
    """A step's completions, in words."""
    return (
        f"{BATCH['prompts_per_step']} prompts × {BATCH['samples_per_prompt']} completions of at "
        f"most {BATCH['max_tokens']} tokens"
    )


Found = dict[int, list[Steps]]
"""By η, the runs of all rounds."""


def by_turns(scratch: Path, rounds: int, once: Callable[[Path, int], Steps]) -> Found:
    """Each η in each round, every other round the other way round."""
    found: Found = {eta: [] for eta in ETAS}
    for number in range(rounds):
        for eta in ETAS if number % 2 == 0 else reversed(ETAS):
            folder = scratch / f"{number}-{eta}"
            found[eta].append(once(folder, eta))
            shutil.rmtree(folder)
    return found


def work(steps: Steps) -> list[tuple[float, float]]:
    """Seconds of learning and of publishing, step by step."""
    return list(zip(steps.of("seconds/learn"), steps.of("seconds/publish"), strict=True))


def rates(found: Found) -> list[tuple[str, str]]:
    """Seconds and rates for each η, and the ratio between them."""
    rows = []
    for eta, runs in found.items():
        seconds = [value for steps in runs for value in steps.of("seconds/step")]
        stale = max(value for steps in runs for value in steps.of("staleness_max"))
        rows += [
            (f"η = {eta}: seconds per step", spread(seconds)),
            ("… response tokens/s trained on", spread([s.rate("tokens") for s in runs], 1)),
            ("… samples/s", spread([s.rate("completions") for s in runs])),
            ("… idle: sampler, learner", f"{idle(runs, 'sampler')}, {idle(runs, 'learner')}"),
            ("… tokens behind by at most", f"{stale:.0f} versions"),
        ]
    ratios = [a.step() / b.step() for a, b in zip(found[0], found[2], strict=True)]
    rows.append(("step at η = 0 / step at η = 2", spread(ratios)))
    return rows


def idle(runs: list[Steps], side: str) -> str:
    """The median share of a step in which a side stood idle."""
    return f"{median([value for steps in runs for value in steps.of(f'idle/{side}')]):.0%}"


def parts(runs: list[Steps]) -> list[tuple[str, str]]:
    """Where the time of a step goes, in seconds and as a share of the step."""
    whole = median([value for steps in runs for value in steps.of("seconds/step")])

    def line(label: str, values: list[float]) -> tuple[str, str]:
        return label, f"{spread(values)}  {median(values) / whole:.0%}"

    def metric(name: str) -> list[float]:
        return [value for steps in runs for value in steps.of(f"seconds/{name}")]

    def part(name: str) -> list[float]:
        return [value for steps in runs for value in steps.parts[name]]

    def less(names: str, *others: str) -> list[float]:
        columns: Any = zip(part(names), *map(part, others), strict=True)
        return [first - sum(rest) for first, *rest in columns]

    return [
        ("where the time goes at η = 0, seconds, and share of a step", ""),
        line("waiting for rollouts", metric("wait")),
        line("… in which completions were drawn", metric("sampling")),
        line("… in which groups were scored, meanwhile or after", metric("scoring")),
        line("learning", part("learn")),
        line("… forward of the proximal policy and the values", part("proximal")),
        line("… forward of the reference", part("reference")),
        line("… forward and backward of the loss", part("backward")),
        line("… clipping and optimiser", part("optimiser")),
        line("… the rest", less("learn", "proximal", "reference", "backward", "optimiser")),
        line("publishing", metric("publish")),
        line("… copying and rounding the weights, canaries", part("gather")),
        line("… sending, the sampler's checks and switch", part("transfer")),
        ("one checkpoint", f"{median([steps.seconds['checkpoint'] for steps in runs]):.2f}"),
    ]
