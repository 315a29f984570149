"""What a person sees before and at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from guerdon.trainer.common.report import listed, say, share, show_groups, show_policy
from guerdon.trainer.fine_tune.folder import TunedPolicyFolder

NOTED = {
    "too_long": "left out as too long",
    "several_turns": "left out, as an answer has several turns",
    "empty_answers": "left out, as an answer is empty",
    "same_tokens": "left out, as both answers are the same tokens",
    "duplicates": "occur again, and are kept",
    "contradictions": "contradict one before, and are kept",
    "reasoning_dropped": "have reasoning in earlier turns, which the chat template leaves out",
}
"""Kinds of rows that are left out or odd, as they are counted and said."""


def show_counts(counts: dict[str, Any], console: Console) -> None:
    """The data's sizes and lengths, and a warning for all that is odd."""
    for split in ("train", "eval"):
        found = counts[split]
        sizes = ", ".join(f"{name} {value}" for name, value in found["tokens"].items())
        say(console, f"{split}: {found['rows']} rows of {found['source']}; tokens: {sizes}")
        kinds = {"bad_rows": "malformed, and skipped"} | NOTED
        for key in (key for key in kinds if key in found["lines"]):
            where = listed(found["lines"][key], found[key])
            say(console, f"  {found[key]} {kinds[key]}: line {where}", "yellow")
            for error in found["errors"] if key == "bad_rows" else ():
                say(console, f"    {error}", "yellow")
        if found.get("prompts_in_train"):
            many = found["prompts_in_train"]
            say(console, f"  {many} held out with a prompt that is trained on", "yellow")


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
            first = "–" if key == "implicit_accuracy" else share(before[key])
            table.add_row(name, first, share(after[key]))
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
    spent = ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items() if v >= 0.5)
    console.print(f"{summary['steps']} steps; seconds: {spent}", highlight=False, soft_wrap=True)
    for text in summary["warnings"]:
        say(console, text, "yellow")
    show_policy(folder, console)
