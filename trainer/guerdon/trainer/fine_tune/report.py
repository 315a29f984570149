"""What a person sees before and at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from guerdon.trainer.common.report import cell, say, show_groups, show_policy, spent
from guerdon.trainer.common.trl.folder import TunedPolicyFolder


def show_summary(summary: dict[str, Any], folder: TunedPolicyFolder, console: Console) -> None:
    """The result as a short table, and what to do with it."""
    before, after = summary["before"], summary["after"]
    table = Table("held out", "before", "after")
    for key, name in (
        ("implicit_accuracy", "pairs that the implied reward gets right"),
        ("likelihood_accuracy", "chosen answer is the likelier"),
        ("mean_likelihood_accuracy", "the same, by the token"),
    ):
        if key in after:
            first = "–" if key == "implicit_accuracy" else cell(before[key])
            table.add_row(name, first, cell(after[key]))
    for key, name in (
        ("margin", "mean margin of the implied reward"),
        ("chosen_shift", "change of log-probability of chosen answers, nats"),
        ("rejected_shift", "and of rejected ones"),
    ):
        if key in after:
            table.add_row(name, "–", f"{after[key]:+.3f}")
    for key, name in (
        ("chosen_nll", "−log-likelihood of chosen answers, nats a token"),
        ("nll", "−log-likelihood, nats a token"),
        ("perplexity", "perplexity"),
    ):
        if key in after:
            table.add_row(name, f"{before[key]:.3f}", f"{after[key]:.3f}")
    console.print(table)
    for field, groups in summary.get("subgroups", {}).items():
        show_groups(field, groups, console)
    say(console, f"{summary['steps']} steps; seconds: {spent(summary['seconds'])}")
    for text in summary["warnings"]:
        say(console, text, "yellow")
    show_policy(folder, console)
