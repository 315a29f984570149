"""What a person sees at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from guerdon.trainer.run_folder import RewardFolder


def show_counts(counts: dict[str, Any], console: Console) -> None:
    """The data's sizes, and a warning for all that is odd."""
    for split in ("train", "eval"):
        found = counts[split]
        console.print(f"{split}: {found['pairs']} pairs of {found['source']}", highlight=False)
        for key, text in (
            ("bad_rows", "malformed rows were skipped"),
            ("too_long", "pairs were left out as too long"),
            ("same_tokens", "pairs were left out: both answers are the same tokens"),
            ("duplicates", "pairs occur more than once"),
            ("contradictions", "pairs contradict another one"),
            ("prompts_in_train", "held-out pairs have a prompt that is trained on"),
        ):
            if found.get(key):
                console.print(f"  [yellow]{found[key]} {text}[/yellow]", highlight=False)


def show_summary(summary: dict[str, Any], folder: RewardFolder, console: Console) -> None:
    """The result as a short table, and what to do with it."""
    table = Table(show_header=False)
    low, high = summary["accuracy_low"], summary["accuracy_high"]
    pairs = summary["data"]["eval"]["pairs"]
    table.add_row(
        "held-out accuracy",
        f"{summary['accuracy']:.3f} (95 %: {low:.3f}–{high:.3f}; {pairs} pairs)",
    )
    if summary["accuracy_before"] is not None:
        table.add_row("before training", f"{summary['accuracy_before']:.3f}")
    found = summary["calibration"]
    table.add_row(
        "calibration",
        f"ECE {found['ece']:.3f}, Brier {found['brier']:.3f}, log loss {found['log_loss']:.3f}",
    )
    table.add_row("length bias", _length(summary["length_bias"]))
    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items() if spent >= 0.5)
    table.add_row("seconds", f"{sum(seconds.values()):.0f} ({parts})")
    console.print(table)
    if not summary["above_chance"]:
        console.print(
            "[yellow]The accuracy can't be told from chance: don't use this model as it is."
            "[/yellow]"
        )
    console.print(f"model: {folder.path}", highlight=False, soft_wrap=True)
    name = folder.path.resolve().name
    console.print(
        f"serve it: guerdon serve reward --model {name}={folder.path}",
        highlight=False,
        soft_wrap=True,
    )


def _length(bias: dict[str, Any]) -> str:
    words = []
    if bias["delta_correlation"] is not None:
        words.append(f"correlation of Δ with length {bias['delta_correlation']:+.2f}")
    for key, text in (("chosen_shorter", "shorter"), ("chosen_longer", "longer")):
        if bias[key]:
            part = f"accuracy {bias[key]['value']:.2f} where the {text} is better"
            words.append(f"{part} ({bias[key]['n']})")
    return "; ".join(words)
