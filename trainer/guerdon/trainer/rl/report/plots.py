"""The pictures of a reinforcement-learning run, from metrics.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.measures import Z95
from guerdon.trainer.common.measuring.plots import (
    CHOSEN,
    REJECTED,
    THIRD,
    new_figure,
    save_figure,
    smoothed,
)
from guerdon.trainer.rl.folder import RLFolder

COLOURS = (CHOSEN, REJECTED, "#4c956c", "#e09f3e", "#7b4f9d", THIRD)
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: lines of metrics over steps."""

    title: str
    lines: Mapping[str, str]
    """Key to label; a key that no row has is passed over."""
    unit: str = ""
    band: str = ""
    """Key of the standard error of the first line: a band of its 95 % interval."""
    held_out: Mapping[str, str] = field(default_factory=dict)
    """Keys of evaluations to labels; `KEY_se` gives error bars."""
    smooth: bool = False
    level: float | None = None
    """A dashed line."""
    limits: tuple[float | None, float | None] = (None, None)
    if_varied: bool = False
    """Draw it only when its lines are not constant."""


FIGURES: dict[str, tuple[Panel, ...]] = {
    "reward": (
        Panel(
            "Reward", {"reward": "training prompts"}, "mean reward", band="reward_se",
            held_out={"eval/reward": "held-out prompts"}, smooth=True,
        ),
        Panel(
            "Reward model that training never sees", {}, "mean score",
            held_out={"eval/heldout_reward": "held-out prompts"},
        ),
    ),
    "kl": (
        Panel(
            "KL to the reference", {"kl": "training prompts"}, "nats per completion",
            held_out={"eval/kl": "held-out prompts"}, smooth=True,
        ),
        Panel("Weight of the KL", {"kl_coef": "β"}, "β", limits=(0, None), if_varied=True),
        Panel("Entropy", {"entropy": "policy"}, "nats per token", smooth=True),
    ),
    "completions": (
        Panel(
            "Length", {"length": "training prompts"}, "tokens",
            held_out={"eval/length": "held-out prompts"}, smooth=True, limits=(0, None),
        ),
        Panel(
            "Ended by themselves", {"finished": "training prompts"}, "share",
            held_out={"eval/finished": "held-out prompts"}, limits=(-0.02, 1.02),
        ),
        Panel(
            "Diversity and repetition",
            {"distinct_2": "distinct-2", "repetition": "repeated 4-grams"}, "share",
            limits=(-0.02, 1.02),
        ),
    ),
    "learning": (
        Panel(
            "Losses", {"loss": "whole", "policy_loss": "policy", "value_loss": "value"}, "loss"
        ),
        Panel(
            "Ratios", {"clip_fraction": "clipped", "capped_fraction": "capped at the behaviour"},
            "share of tokens", limits=(0, None),
        ),
        Panel(
            "Gradients before clipping",
            {"grad_norm": "policy", "value_grad_norm": "value model"}, "norm", limits=(0, None),
        ),
    ),
    "pairs": (
        Panel(
            "Implied rewards", {"chosen_reward": "chosen", "rejected_reward": "rejected"},
            "β·log(π/π_ref)",
        ),
        Panel(
            "Pairs", {"accuracy": "ranked as rewarded", "paired": "prompts that made one",
                      "pair_longer": "chosen is longer"},
            "share", limits=(-0.02, 1.02),
        ),
    ),
    "off_policy": (
        Panel(
            "Staleness", {"staleness": "mean", "staleness_max": "most"}, "weight versions",
            limits=(-0.05, None),
        ),
        Panel("Mismatch of sampler and trainer", {"mismatch_kl": "k3"}, "KL per token"),
        Panel("Effective sample size", {"ess": "of w"}, "share", level=1.0),
    ),
}  # fmt: skip
"""File name to its panels, left to right; those without data are left out."""

PHASES = ("wait", "logprobs", "learn", "publish", "evaluate", "checkpoint")
IDLE = {"idle/sampler": "sampler", "idle/rewards": "reward models", "idle/learner": "learner"}


def draw_plots(folder: RLFolder) -> list[Path]:
    """Draw everything that metrics.jsonl has numbers for, into plots/; the files."""
    rows = read_rows(folder.metrics)
    folder.plots.mkdir(exist_ok=True)
    found = []
    for name, panels in FIGURES.items():
        drawn = [panel for panel in panels if _has(rows, panel)]
        if drawn:
            found.append(_figure(drawn, rows, folder.plots / f"{name}.png"))
    if any(_phases(row) for row in rows):
        found.append(_time(rows, folder.plots / "time.png"))
    return found


def read_rows(path: Path) -> list[dict[str, float]]:
    """The whole lines of metrics.jsonl."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _has(rows: Rows, panel: Panel) -> bool:
    keys = [*panel.lines, *panel.held_out]
    values = [row[key] for row in rows for key in keys if key in row]
    return len(set(values)) > 1 if panel.if_varied else bool(values)


def _figure(panels: Sequence[Panel], rows: Rows, path: Path) -> Path:
    figure, axes = new_figure(len(panels))
    for ax, panel in zip(np.atleast_1d(axes), panels, strict=True):
        _lines(ax, panel, rows)
        _held_out(ax, panel, rows)
        if panel.level is not None:
            ax.axhline(panel.level, color=THIRD, linestyle="--", linewidth=1)
        ax.set(xlabel="step", ylabel=panel.unit, title=panel.title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(*panel.limits)
        ax.legend()
    save_figure(figure, path)
    return path


def _lines(ax: Any, panel: Panel, rows: Rows) -> None:
    for place, (key, label) in enumerate(panel.lines.items()):
        steps, values = _series(rows, key)
        if not steps:
            continue
        colour = COLOURS[place]
        if panel.smooth and len(steps) > 2:
            ax.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            ax.plot(steps, _both_ways(values), color=colour, label=f"{label}, smoothed")
        else:
            ax.plot(steps, values, color=colour, label=label, marker="." if len(steps) < 3 else "")
        if place == 0 and panel.band:
            _band(ax, rows, key, panel.band, colour)


def _both_ways(values: Sequence[float]) -> Any:
    """Smoothed forwards and backwards, so that a trend does not lag."""
    forward, backward = smoothed(values, 0.6), smoothed(values[::-1], 0.6)[::-1]
    return (np.array(forward) + np.array(backward)) / 2


def _band(ax: Any, rows: Rows, key: str, error: str, colour: str) -> None:
    both = [(row["step"], row[key], row[error]) for row in rows if key in row and error in row]
    if both:
        steps, mean, half = np.array(both).T
        low, high = mean - Z95 * half, mean + Z95 * half
        ax.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0, label="95 %")


def _held_out(ax: Any, panel: Panel, rows: Rows) -> None:
    for place, (key, label) in enumerate(panel.held_out.items(), start=1):
        steps, values = _series(rows, key)
        if not steps:
            continue
        errors = [Z95 * row.get(f"{key}_se", 0.0) for row in rows if key in row]
        if any(errors):
            label = f"{label}, 95 %"
        ax.errorbar(
            steps,
            values,
            yerr=errors if any(errors) else None,
            fmt="o-",
            capsize=3,
            color=COLOURS[place],
            label=label,
            linewidth=1.5,
            markersize=5,
        )


def _series(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[key]) for row in rows if key in row]
    return [step for step, _ in found], [value for _, value in found]


def _phases(row: Mapping[str, float]) -> dict[str, float]:
    return {name: row[f"seconds/{name}"] for name in PHASES if f"seconds/{name}" in row}


def _time(rows: Rows, path: Path) -> Path:
    """The picture of each step's time by phase, and of idleness."""
    rows = [row for row in rows if _phases(row)]
    steps = np.array([row["step"] for row in rows])
    idle = any(key in row for row in rows for key in IDLE)
    figure, axes = new_figure(2 if idle else 1)
    left = np.atleast_1d(axes)[0]
    floor = np.zeros(len(rows))
    for name, colour in zip(PHASES, COLOURS, strict=True):
        spent = np.array([_phases(row).get(name, 0.0) for row in rows])
        if spent.any():
            left.bar(steps, spent, 0.9, bottom=floor, color=colour, label=name, linewidth=0)
            floor += spent
    left.set(xlabel="step", ylabel="seconds", title="Where a step's time goes")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylim(0, 1.25 * max(floor.max(), 1e-9))  # room for the legend
    left.legend(ncols=3, loc="upper center")
    if idle:
        panel = Panel("Idle", dict(IDLE), "share of the step", limits=(-0.02, 1.25))
        _lines(axes[1], panel, rows)
        axes[1].set(xlabel="step", ylabel=panel.unit, title=panel.title, ylim=panel.limits)
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        axes[1].legend(ncols=3, loc="upper center")
    save_figure(figure, path)
    return path
