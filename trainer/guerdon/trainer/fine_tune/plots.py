"""The run's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.measuring.measures import Floats
from guerdon.trainer.common.measuring.plots import (
    CHOSEN,
    REJECTED,
    THIRD,
    draw_curve,
    new_figure,
    save_figure,
)

Rows = Sequence[dict[str, Any]]


def draw_plots(folder: Path, rows: Rows, rewards: tuple[Floats, Floats] | None) -> None:
    """Write `training.png`, and for pairs `rewards.png`.

    Args:
        folder: made if it is not there.
        rows: of metrics.jsonl.
        rewards: implied, of held-out chosen and rejected answers.
    """
    folder.mkdir(exist_ok=True)
    save_figure(_training(rows), folder / "training.png")
    if rewards is not None:
        save_figure(_rewards(*rewards), folder / "rewards.png")


def _training(rows: Rows) -> Any:
    second = next((k for k in ("accuracy", "token_accuracy") if any(k in r for r in rows)), "")
    figure, axes = new_figure(2 if second else 1)
    for ax, key in zip(np.atleast_1d(axes), ("loss", second), strict=False):
        draw_curve(ax, rows, key, key.replace("_", " "))
    return figure


def _rewards(chosen: Floats, rejected: Floats) -> Any:
    figure, (left, right) = new_figure(2)
    both = np.concatenate([chosen, rejected])
    bins = np.linspace(both.min(), both.max() + 1e-9, 31)
    for values, colour, name in ((chosen, CHOSEN, "chosen"), (rejected, REJECTED, "rejected")):
        left.hist(values, bins=bins, color=colour, alpha=0.55, label=name)
    left.axvline(0, color=THIRD, linestyle="--", linewidth=1)
    left.set(xlabel="implied reward", ylabel="held-out answers", title="Implied rewards")
    left.legend()
    delta = chosen - rejected
    right.hist(delta, bins=31, color=CHOSEN, alpha=0.7)
    right.axvline(0, color=THIRD, linestyle="--", linewidth=1)
    share = float((delta > 0).mean())
    right.set(
        xlabel="chosen − rejected",
        ylabel="held-out pairs",
        title=f"Margins ({share:.0%} the right way round)",
    )
    return figure
