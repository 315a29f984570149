"""Whole PPO runs for the benchmarks: started in a process of their own, and what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.common import ROOT, median
from tests.support.command import read_rows

TASKS = ROOT / "trainer" / "guerdon" / "trainer" / "rl" / "tasks"
WARM_UP = 2
"""First steps that are left out: both sides warm up, and with η > 0 the buffer fills."""
RUN_SECONDS = 1800.0


@dataclass(frozen=True)
class Steps:
    """What a run said of its steps after the first two.

    Args:
        rows: of metrics.jsonl, one for each step.
        parts: seconds by part of the learner and the publisher, over all calls in order.
        seconds: of the whole run, by phase.
    """

    rows: Sequence[Mapping[str, float]]
    parts: Mapping[str, Sequence[float]]
    seconds: Mapping[str, float]

    def of(self, key: str) -> list[float]:
        """A metric, step by step."""
        return [row[key] for row in self.rows]

    def rate(self, key: str) -> float:
        """Tokens or completions per second of wall-clock time."""
        return sum(self.of(key)) / sum(self.of("seconds/step"))

    def step(self) -> float:
        """Seconds of the median step."""
        return median(self.of("seconds/step"))


def ppo(folder: Path, *, sampler: str, eta: int, **flags: object) -> Steps:
    """Run `guerdon train ppo` to its end.

    Args:
        folder: for the run and its records; it must not exist.
        sampler: HOST:PORT.
        eta: η, the run's `max_staleness`.
        flags: `max_tokens=48` is `--max-tokens 48`.

    Raises:
        RuntimeError: it failed; the text is its log.
    """
    folder.mkdir(parents=True)
    record, log, run = folder / "record.jsonl", folder / "log", folder / "run"
    command = [
        sys.executable,
        "-m",
        "tests.bench.timed",
        str(record),
        "ppo",
        "--sampler",
        sampler,
        "--prompts",
        str(TASKS / "questions-train.jsonl"),
        "--eval-prompts",
        str(TASKS / "questions-eval.jsonl"),
        "--output",
        str(run),
        "--max-staleness",
        str(eta),
        "--eval-every",
        "0",
        "--eval-limit",
        "2",
        "--eval-samples",
        "1",
        "--no-plots",
    ]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with log.open("wb") as handle:
        done = subprocess.run(
            command,
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            timeout=RUN_SECONDS,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{log.read_text(errors='replace')}")
    return _read(run, record)


def _read(run: Path, record: Path) -> Steps:
    rows = [row for row in read_rows(run / "metrics.jsonl") if "reward" in row]
    calls = read_rows(record)
    names = {name for call in calls for name in call}
    # The first publication has no step before it, so those of steps after the warm-up are later.
    first = {name: WARM_UP + (name in ("gather", "transfer")) for name in names}
    parts = {name: [call[name] for call in calls if name in call][first[name] :] for name in names}
    summary = json.loads((run / "summary.json").read_text())
    return Steps(rows[WARM_UP:], parts, summary["seconds"])
