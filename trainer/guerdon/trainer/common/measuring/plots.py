"""Helpers for the pictures of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CHOSEN, REJECTED, THIRD = "#1b6ca8", "#d1495b", "#6b6b6b"


def new_figure(columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, side by side."""
    # Not pyplot: it would choose a window system and keep figures alive.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * columns, 4), layout="constrained", dpi=120)
    axes = figure.subplots(1, columns)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def as_words(text: str) -> str:
    """Anybody's text for a picture: between two dollars matplotlib would set it as a formula."""
    return text.replace("$", r"\$")


def save_figure(figure: Any, path: Path) -> None:
    """Write it as the file's ending says."""
    figure.savefig(path)


def smoothed(values: Sequence[float], keep: float = 0.8) -> list[float]:
    """Exponential average, corrected for its start (as in Adam)."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        found.append(total / weight)
    return found


def draw_curve(ax: Any, rows: Sequence[Mapping[str, Any]], key: str, name: str) -> None:
    """A number of metrics.jsonl over the steps: as logged, smoothed, and on what is held out."""
    logged, held_out = (
        [(row["step"], row[each]) for row in rows if each in row] for each in (key, f"eval_{key}")
    )
    if logged:
        steps, values = zip(*logged, strict=True)
        ax.plot(steps, values, color=CHOSEN, alpha=0.35, label="logged")
        ax.plot(steps, smoothed(values), color=CHOSEN, label="smoothed")
    if held_out:
        ax.plot(*zip(*held_out, strict=True), "o-", color=REJECTED, label="held out")
    ax.set(xlabel="step", ylabel=name, title=f"{name[0].upper()}{name[1:]}")
    if logged or held_out:
        ax.legend()
