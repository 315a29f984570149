"""The steps of the demo, in order."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import deploy.demo
from deploy.demo import policy, reward
from deploy.demo.console import ROOT, DemoFailed, console, heading, minutes, relative
from deploy.demo.processes import GUERDON, check_gpu, leave_on_sigterm, serving

from guerdon.client import GuerdonError, Item, RewardClient

NAME = "helpful"
CALL_SECONDS = 1200.0
"""Seconds for one call: a busy machine may take minutes for all the held-out answers."""


def main() -> None:
    """Run the demo; any failure is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="make demo", description=deploy.demo.__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--fresh", action="store_true", help="train everything again")
    parser.add_argument("--prompts", type=int, default=5, help="held-out prompts to show")
    parser.add_argument("--seed", type=int, default=0, help="of the PPO run")
    parser.add_argument("--reward-only", action="store_true", help="leave out the PPO run")
    args = parser.parse_args()
    leave_on_sigterm()
    started = time.monotonic()
    try:
        run(args)
    except (DemoFailed, GuerdonError) as error:
        console.print(f"[red]demo:[/red] {error}", highlight=False)
        sys.exit(1)
    console.print(f"\nThe demo took {minutes(time.monotonic() - started)}.", highlight=False)


def run(args: argparse.Namespace) -> None:
    """Train a reward model, serve it, ask it, and train a policy on its scores."""
    check_gpu()
    output = args.output.resolve()
    heading("Train a reward model on the project's own preference pairs")
    model = reward.train(output / "reward-model", fresh=args.fresh)

    heading("Serve it over gRPC")
    command = ["reward", "--model", f"{NAME}={model}"]
    with serving(command, output / "reward-server.log") as served:
        with RewardClient(served.grpc, timeout=CALL_SECONDS) as client:
            ask(client, args.prompts)
        if not args.reward_only:
            improve(output, served.grpc, args)
    show_next(output, model)


def show_next(output: Path, model: Path) -> None:
    """What to try, and where to look; the commands can be copied."""
    ppo = sorted(output.glob("ppo-*/final"))
    lines = [
        f"{relative(GUERDON)} serve reward --model {NAME}={relative(model)}    # stays there",
        f"{relative(GUERDON)} rank --model {NAME} --prompt 'What is rain?' "
        "--candidate 'Water that falls from clouds.' --candidate 'Rain rain rain rain'",
        *(f"{relative(GUERDON)} serve sampler --model {relative(each)}" for each in ppo[:1]),
        f"look at {relative(model / 'plots')} and {relative(model / 'summary.json')}",
    ]
    console.print("\n[bold]Next[/bold]")
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def ask(client: RewardClient, prompts: int) -> None:
    """Score, rank and time."""
    reward.describe(client, NAME)
    groups = reward.held_out()
    items = [Item(group.prompt, group.answers) for group in groups]
    heading(f"Score the answers to {len(items)} held-out prompts, as one call")
    reward.show_scores(groups, client.score(NAME, items), prompts)
    heading("Rank the answers to one prompt, and time a call on the idle server")
    reward.show_ranking(client, NAME, max(items, key=lambda item: len(item.responses)))
    reward.show_latency(client, NAME, items)


def improve(output: Path, address: str, args: argparse.Namespace) -> None:
    """Train the policy on the served reward, and show what came of it."""
    folder = output / f"ppo-{args.seed}"
    if args.fresh:
        policy.clear(folder)
    if policy.finished(folder):
        heading("Train the policy by PPO")
        console.print(f"Using {relative(folder)} of an earlier run (--fresh trains again).")
        policy.show(folder)
        return
    heading("Serve the policy: vLLM samples from SmolLM2-135M-Instruct")
    with serving(["sampler", "--model", policy.BASE], output / "sampler.log") as sampler:
        heading("Train it by PPO: prompts go to the sampler, its answers to the reward server")
        policy.train(folder, sampler.grpc, f"{address}/{NAME}", seed=args.seed)
        policy.show(folder)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
