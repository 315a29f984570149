"""Pictures of runs on attributes and on steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.measuring.plots import (
    CHOSEN,
    REJECTED,
    THIRD,
    as_words,
    draw_curve,
    new_figure,
    save_figure,
)
from guerdon.trainer.reward.objectives import regression


def draw_attributes(
    folder: Path, rows: Sequence[dict[str, Any]], columns: Mapping[str, tuple[Floats, Floats]]
) -> None:
    """Write `training.png`, `predicted.png` and `calibration.png`.

    Args:
        folder: made if need be.
        rows: of metrics.jsonl.
        columns: by attribute, predictions and labels (NaN where one is not known).
    """
    folder.mkdir(exist_ok=True)
    save_figure(_training(rows, "mean squared error"), folder / "training.png")
    save_figure(_predicted(columns), folder / "predicted.png")
    save_figure(_calibration(columns), folder / "calibration.png")


def draw_steps(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    scores: Floats,
    right: Floats,
    bins: Sequence[Mapping[str, Any]],
) -> None:
    """Write `training.png`, `scores.png` and `reliability.png`.

    Args:
        folder: made if need be.
        rows: of metrics.jsonl.
        scores: raw scores of the held-out steps.
        right: 1 for a right step, 0 for a wrong one.
        bins: of the reliability diagram.
    """
    folder.mkdir(exist_ok=True)
    save_figure(_training(rows, "cross-entropy of a step"), folder / "training.png")
    figure, ax = new_figure()
    edges = np.histogram_bin_edges(scores, bins=30)
    ax.hist(scores[right == 1], edges, color=CHOSEN, alpha=0.6, label="right")
    ax.hist(scores[right == 0], edges, color=REJECTED, alpha=0.6, label="wrong")
    ax.set(xlabel="raw score", ylabel="held-out steps", title="Scores of held-out steps")
    ax.legend()
    save_figure(figure, folder / "scores.png")
    figure, ax = new_figure()
    some = [b for b in bins if b["n"]]
    ax.plot([0, 1], [0, 1], color=THIRD, linestyle="--", linewidth=1, label="perfect")
    ax.plot([b["probability"] for b in some], [b["right"] for b in some], "o-", color=CHOSEN)
    ax.set(
        xlabel="σ(score)",
        ylabel="share that is right",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.05),
        title="Reliability",
    )
    ax.legend(loc="lower right")
    save_figure(figure, folder / "reliability.png")


def _training(rows: Sequence[dict[str, Any]], name: str) -> Any:
    figure, ax = new_figure()
    draw_curve(ax, rows, "loss", name)
    ax.set_ylim(0, None)
    return figure


def _predicted(columns: Mapping[str, tuple[Floats, Floats]]) -> Any:
    figure, axes = new_figure(len(columns))
    for ax, (name, (predicted, true)) in zip(np.atleast_1d(axes), columns.items(), strict=True):
        known = ~np.isnan(true)
        ax.scatter(true[known], predicted[known], s=12, alpha=0.5, color=CHOSEN, linewidths=0)
        ends = [true[known].min(), true[known].max()]
        ax.plot(ends, ends, color=THIRD, linestyle="--", linewidth=1, label="perfect")
        ax.set(xlabel="label", ylabel="prediction", title=as_words(name))
        ax.legend()
    return figure


def _calibration(columns: Mapping[str, tuple[Floats, Floats]]) -> Any:
    figure, ax = new_figure()
    for name, (predicted, true) in columns.items():
        known = ~np.isnan(true)
        bins = regression.calibration(predicted[known], true[known])["bins"]
        shown = as_words(name)
        ax.plot([b["predicted"] for b in bins], [b["true"] for b in bins], "o-", label=shown)
    low, high = ax.get_xlim()
    ax.plot([low, high], [low, high], color=THIRD, linestyle="--", linewidth=1)
    ax.set(xlabel="mean prediction", ylabel="mean label", title="Calibration, in bins")
    ax.legend()
    return figure
