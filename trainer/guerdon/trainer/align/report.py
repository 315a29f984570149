"""What a person sees before and at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from guerdon.trainer.align.folder import AlignFolder

_ODD = (
    ("too_long", "rows were left out as too long"),
    ("several_turns", "pairs were left out: an answer has several turns"),
    ("empty_answers", "pairs were left out: an answer is empty"),
    ("same_tokens", "pairs were left out: both answers are the same tokens"),
    ("duplicates", "rows occur more than once"),
    ("contradictions", "pairs contradict another one"),
    ("prompts_in_train", "held-out rows have a prompt that is trained on"),
)


def show_counts(counts: dict[str, Any], console: Console) -> None:
    """The data's sizes and lengths, and a warning for all that is odd."""
    for split in ("train", "eval"):
        found = counts[split]
        sizes = ", ".join(f"{name} {value}" for name, value in found["tokens"].items())
        console.print(
            f"{split}: {found['rows']} rows of {found['source']}; tokens: {sizes}", highlight=False
        )
        if found["bad_rows"]:
            lines = ", ".join(str(line) for line in found["bad_lines"])
            more = ", …" if found["bad_rows"] > len(found["bad_lines"]) else ""
            console.print(
                f"  [yellow]{found['bad_rows']} malformed rows were skipped (lines {lines}{more})"
                "[/yellow]", highlight=False,
            )  # fmt: skip
        for key, text in _ODD:
            if found.get(key):
                console.print(f"  [yellow]{found[key]} {text}[/yellow]", highlight=False)


def show_summary(summary: dict[str, Any], folder: AlignFolder, console: Console) -> None:
    """The result as a short table, and what to do with it."""
    before, after = summary["before"], summary["after"]
    table = Table("held out", "before", "after")
    for key, name in (
        ("implicit_accuracy", "pairs that the implied reward gets right"),
        ("likelihood_accuracy", "chosen answer is the likelier"),
        ("mean_likelihood_accuracy", "the same, by the token"),
    ):
        if key in after:
            first = "–" if key == "implicit_accuracy" else _share(before[key])
            table.add_row(name, first, _share(after[key]))
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
    spent = ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items() if v >= 0.5)
    console.print(f"{summary['steps']} steps; seconds: {spent}", highlight=False, soft_wrap=True)
    if "implicit_accuracy" in after and after["implicit_accuracy"]["low"] <= 0.5:
        console.print(
            "[yellow]The implied reward can't be told from chance on the held-out pairs.[/yellow]"
        )
    console.print(f"policy: {folder.final}", markup=False, highlight=False, soft_wrap=True)


def _share(found: dict[str, Any]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"
