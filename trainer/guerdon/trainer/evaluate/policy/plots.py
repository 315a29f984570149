"""The pictures of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guerdon.trainer.common.measuring.plots import (
    CHOSEN,
    REJECTED,
    THIRD,
    as_words,
    new_figure,
    save_figure,
)
from guerdon.trainer.evaluate.policy.baseline import Baseline

MOST = 30
"""Values of a field that are drawn: those with the most prompts."""


def draw_plots(
    folder: Path,
    found: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    baseline: Baseline | None,
) -> None:
    """Write `length.png`, and `reward_by_FIELD.png` for every field.

    Args:
        folder: made if need be.
        found: evaluation.json.
        rows: of samples.jsonl.
        baseline: drawn beside it, where there is one.
    """
    folder.mkdir(exist_ok=True)
    save_figure(_lengths(rows, baseline), folder / "length.png")
    for field, values in found["subgroups"].items():
        name = re.sub(r"[^\w.-]", "_", field)
        save_figure(_by(field, values, found), folder / f"reward_by_{name}.png")


def _lengths(rows: Sequence[Mapping[str, Any]], baseline: Baseline | None) -> Any:
    figure, ax = new_figure()
    drawn = [("this policy", CHOSEN, [row["tokens"] for row in rows])]
    if baseline is not None:
        theirs = [value for values in baseline.columns["length"].values() for value in values]
        drawn.append(("baseline", REJECTED, theirs))
    top = max(max(values) for _, _, values in drawn)
    for label, colour, values in drawn:
        ax.hist(values, bins=30, range=(0, top), color=colour, alpha=0.6, label=label)
    ax.set(xlabel="tokens of a completion", ylabel="completions", title="Length")
    if len(drawn) > 1:
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def _by(field: str, values: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> Any:
    most = sorted(values, key=lambda value: -values[value]["reward"]["n"])[:MOST]
    shown = [(value, values[value]["reward"]) for value in values if value in most][::-1]
    figure, ax = new_figure()
    figure.set_figheight(max(2.5, 0.32 * len(shown) + 1.2))
    for at, (_, reward) in enumerate(shown):
        if reward["low"] is not None:
            ax.plot([reward["low"], reward["high"]], [at, at], color=CHOSEN, linewidth=2)
        ax.plot(reward["mean"], at, "o", color=CHOSEN)
    names = [f"{value or '(none)'}  n = {reward['n']}" for value, reward in shown]
    ax.set_yticks(range(len(shown)), [as_words(name) for name in names])
    ax.axvline(
        found["measures"]["reward"]["mean"],
        color=THIRD,
        linestyle="--",
        linewidth=1,
        label="all prompts",
    )
    ax.set(xlabel="mean reward, 95 % interval", title=as_words(f"Reward by {field}"))
    figure.legend(loc="outside lower center")
    return figure
