"""The stages of the comparison, one after the other."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import deploy.comparison
from deploy.comparison.budgets import BUDGETS
from deploy.comparison.split_pairs import write_halves
from deploy.comparison.stages import Plan, Stage
from deploy.demo.console import ROOT, DemoFailed, console, heading, minutes, relative
from deploy.demo.policy import BASE
from deploy.demo.processes import check_gpu, leave_on_sigterm, run, run_logged, serving
from deploy.demo.reward import DATA

from guerdon.trainer.common.run_folder import write_whole

TERMS = "comparison.json"
"""In the output: what an earlier try was told."""


def main() -> None:
    """Run what is not done yet; any failure is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="make comparison", description=deploy.comparison.__doc__)
    parser.add_argument(
        "--budget",
        choices=sorted(BUDGETS),
        default="small",
        help="small takes about 40 minutes on two CPU cores; tiny only shows that it works",
    )
    parser.add_argument(
        "--output", type=Path, help="by default runs/comparison-BUDGET, with -seed-N but for seed 0"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    args = parser.parse_args()
    leave_on_sigterm()
    name = f"comparison-{args.budget}" + (f"-seed-{args.seed}" if args.seed else "")
    output = (args.output or ROOT / "runs" / name).resolve()
    begun = time.monotonic()
    try:
        keep_terms(output, args.budget, args.seed)
        pairs = write_halves(DATA / "train.jsonl", output / "data")
        compare(Plan(output, BUDGETS[args.budget], pairs, args.seed))
    except DemoFailed as error:
        console.print(f"[red]comparison:[/red] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped: the same command goes on where it was")
        sys.exit(130)
    console.print(f"\nThat took {minutes(time.monotonic() - begun)}.", highlight=False)


def keep_terms(output: Path, budget: str, seed: int) -> None:
    """Write down what is asked for; what was done for another budget or seed is not used.

    Raises:
        DemoFailed: it was asked for something else before.
    """
    path, asked = output / TERMS, {"budget": budget, "seed": seed}
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asked) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != asked:
        raise DemoFailed(
            f"{relative(output)} was begun with budget {before['budget']} and seed "
            f"{before['seed']}: give another --output"
        )


def compare(plan: Plan) -> None:
    """All stages, and the report.

    Raises:
        DemoFailed: one of them failed.
    """
    check_gpu()
    logs = plan.output / "logs"
    do(plan.on_files(), logs)
    if not all(stage.done for stage in plan.with_services("", "")):
        heading("Serve both reward models, and the policy")
        with ExitStack() as stack:
            models = [
                word for name, path in plan.models.items() for word in ("--model", f"{name}={path}")
            ]
            rewards = stack.enter_context(serving(["reward", *models], logs / "rewards.log"))
            sampler = stack.enter_context(
                serving(["sampler", "--model", BASE], logs / "sampler.log")
            )
            do(plan.with_services(rewards.grpc, sampler.grpc), logs)
    heading("Put them side by side")
    run(plan.report(), "the comparison failed; its message is above")


def do(stages: Sequence[Stage], logs: Path) -> None:
    """The stages that are not done, each with a log of its own.

    Raises:
        DemoFailed: one of them failed.
    """
    for stage in stages:
        heading(stage.title)
        if stage.done:
            console.print(f"{relative(stage.folder)} is there already.", highlight=False)
            continue
        begun = time.monotonic()
        name = "-".join(stage.folder.relative_to(logs.parent).parts)
        run_logged(stage.resumed, logs / f"{name}.log")
        if not stage.done:
            raise DemoFailed(f"{stage.folder} is not whole though its command ended well")
        console.print(f"done in {minutes(time.monotonic() - begun)}", highlight=False)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
