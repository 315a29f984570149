"""Pictures of a reward model that was trained on preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.measures import Calibration, Floats
from guerdon.trainer.common.measuring.plots import (
    CHOSEN,
    REJECTED,
    THIRD,
    draw_curve,
    new_figure,
    save_figure,
)
from guerdon.trainer.reward.scoring import PairScores


def draw_all(
    folder: Path,
    *,
    rows: Sequence[dict[str, Any]],
    scores: PairScores,
    chosen_tokens: Floats,
    rejected_tokens: Floats,
    calibration: Calibration,
) -> None:
    """Write `training.png` (with rows), `reliability.png`, `scores.png` and `length.png`."""
    folder.mkdir(exist_ok=True)
    if rows:
        save_figure(_training(rows), folder / "training.png")
    save_figure(_reliability(calibration), folder / "reliability.png")
    save_figure(_scores(scores), folder / "scores.png")
    save_figure(_length(scores, chosen_tokens, rejected_tokens), folder / "length.png")


def _training(rows: Sequence[dict[str, Any]]) -> Any:
    figure, (left, right) = new_figure(2)
    for ax, key, chance, name in (
        (left, "loss", np.log(2), "pairwise loss"),
        (right, "accuracy", 0.5, "pairwise accuracy"),
    ):
        ax.axhline(chance, color=THIRD, linestyle="--", linewidth=1, label="chance")
        draw_curve(ax, rows, key, name)
    right.set_ylim(0, 1.02)
    return figure


def _reliability(calibration: Calibration) -> Any:
    figure, ax = new_figure()
    bins = [b for b in calibration.bins if b.n]
    ax.plot([0.5, 1], [0.5, 1], color=THIRD, linestyle="--", linewidth=1, label="perfect")
    ax.plot(
        [b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=CHOSEN, label="model"
    )
    for b in bins:
        ax.annotate(
            f"{b.n}",
            (b.confidence, b.accuracy),
            textcoords="offset points",
            xytext=(5, -11),
            fontsize=8,
            color=THIRD,
        )
    ax.set(
        xlabel="confidence σ(|Δ|)",
        ylabel="share that is right",
        ylim=(-0.02, 1.05),
        title=f"Reliability (ECE {calibration.ece:.3f}, Brier {calibration.brier:.3f})",
    )
    ax.legend(loc="lower right", title="numbers: pairs in the bin", title_fontsize=8)
    return figure


def _scores(scores: PairScores) -> Any:
    figure, ax = new_figure()
    edges = np.histogram_bin_edges(scores.all, bins=30)
    ax.hist(scores.chosen, edges, color=CHOSEN, alpha=0.6, label="chosen")
    ax.hist(scores.rejected, edges, color=REJECTED, alpha=0.6, label="rejected")
    ax.set(xlabel="raw score", ylabel="held-out answers", title="Scores of held-out answers")
    ax.legend()
    return figure


def _length(scores: PairScores, chosen_tokens: Floats, rejected_tokens: Floats) -> Any:
    figure, ax = new_figure()
    for x, y, colour, name in (
        (chosen_tokens, scores.chosen, CHOSEN, "chosen"),
        (rejected_tokens, scores.rejected, REJECTED, "rejected"),
    ):
        ax.scatter(x, y, s=12, alpha=0.55, color=colour, label=name, linewidths=0)
    x, y = np.concatenate([chosen_tokens, rejected_tokens]), scores.all
    if np.ptp(x) > 0:
        slope, intercept = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        ax.plot(ends, slope * ends + intercept, color=THIRD, linestyle="--", label="least squares")
    ax.set(xlabel="tokens of the answer", ylabel="raw score", title="Score against length")
    ax.legend()
    return figure
