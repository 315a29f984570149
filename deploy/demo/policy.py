"""The PPO run of the demo: started, and what came of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deploy.demo.console import DemoFailed, console, relative
from deploy.demo.processes import flags, run

BASE = "smollm2-135m-instruct"
SETTINGS = {
    "steps": 12,
    "prompts-per-step": 8,
    "samples-per-prompt": 8,
    "max-tokens": 48,
    "lr": 3e-5,
    "kl-coef": 0.05,
    "eval-every": 6,
    "eval-samples": 2,
    "eval-limit": 50,
    "checkpoint-every": 4,
}
"""What fits into ten minutes on two CPU cores."""


def finished(folder: Path) -> bool:
    """Whether an earlier demo's run ended well."""
    return (folder / "summary.json").exists() and (folder / "final").is_dir()


def train(folder: Path, sampler: str, reward: str, *, seed: int) -> None:
    """Run PPO, or go on with a run that was interrupted.

    Raises:
        DemoFailed: it failed.
    """
    options = {
        "policy": BASE,
        "sampler": sampler,
        "reward": reward,
        "prompts": "questions-train",
        "eval-prompts": "questions-eval",
        "seed": seed,
        "output": folder,
        **SETTINGS,
    }
    command = ["train", "ppo", *flags(options)]
    if folder.exists():  # an interrupted demo goes on where it was
        command.append("--resume")
    run(command, "PPO failed; its message is above")


def clear(folder: Path) -> None:
    """Remove an earlier run."""
    if folder.exists():
        shutil.rmtree(folder)


def show(folder: Path) -> None:
    """What came of it, in words; the run itself printed its tables.

    Raises:
        DemoFailed: the summary can't be read.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DemoFailed(f"{folder / 'summary.json'} can't be read: {error}") from error
    console.print(verdict(summary), highlight=False)
    console.print(f"plots: {plots(folder)}", highlight=False, soft_wrap=True)
    console.print(f"policy: {relative(folder / 'final')}", highlight=False, soft_wrap=True)


def verdict(summary: dict[str, Any]) -> str:
    """The held-out reward before and after with its noise, and how far the policy went."""
    before, after = summary["before"]["reward"], summary["after"]["reward"]
    change = summary["difference"]["reward"]
    rose = "rose beyond its noise" if summary["reward_rose"] else "did not rise beyond its noise"
    text = (
        f"The mean reward of {after['n']} held-out prompts {rose}: from {mean(before)} to "
        f"{mean(after)}, by {change['mean']:+.3f}"
    )
    if change["low"] is not None:
        text += f" (95 %: {change['low']:+.3f} to {change['high']:+.3f})"
    kl = summary["after"].get("kl")
    length = summary["after"]["length"]["mean"]
    if kl is not None:
        text += (
            f". KL to the first policy: {kl['mean']:.2f} nats per completion, "
            f"{kl['mean'] / length:.3f} per token"
        )
    return f"{text}. It took {summary['steps']} steps."


def mean(found: dict[str, Any]) -> str:
    """A mean with its standard error."""
    noise = f" ± {found['se']:.3f}" if found["se"] is not None else ""
    return f"{found['mean']:+.3f}{noise}"


def plots(folder: Path) -> str:
    """Where the pictures of a run are: the reward's, and how many others."""
    found = sorted((folder / "plots").glob("*.png"))
    first = folder / "plots" / "reward.png"
    others = [path for path in found if path != first]
    return f"{relative(first)}, and {len(others)} others beside it" if first in found else "none"
