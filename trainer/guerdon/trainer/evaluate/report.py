"""What a person sees of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.trainer.common.report import cell, length_bias, say

_ODD = {
    "refused": "rows were refused by the server",
    "ties": "ties, which count as wrong",
    "same_tokens": "rows have a chosen and a rejected answer that are the same tokens to the model",
    "dropped_text": "answers are judged without text that the model's chat template leaves out",
}
"""What is counted of a model and worth a warning."""


def show(found: Mapping[str, Any], console: Console) -> None:
    """The findings as tables."""
    for model in found["models"]:
        _show_model(model, console)
    if "agreement" in found:
        both = found["agreement"]
        table = Table(f"{found['models'][0]['model']} and {found['models'][1]['model']}", "")
        test = both["accuracy"]
        table.add_row(
            "right more often by",
            f"{test['difference']:+.3f} (p = {test['p']:.2g}; alone right {test['first_only']} "
            f"and {test['second_only']} times)",
        )
        table.add_row("order the answers alike", cell(both["same_order"]))
        correlation = both["margin_rank_correlation"]
        if correlation is not None:
            table.add_row("rank correlation of the margins", f"{correlation:+.3f}")
        table.add_row("largest difference of a score", f"{both['largest_difference']:.3g}")
        console.print(table)


def _show_model(model: Mapping[str, Any], console: Console) -> None:
    table = Table(f"{model['model']}@{model['revision'][:12]}", "accuracy (95 %)", "n")
    table.columns[2].justify = "right"
    table.add_row("all", cell(model["accuracy"]), str(model["accuracy"]["n"]))
    for name, part in model["subsets"].items():
        table.add_row(f"  {escape(name) or '(none)'}", cell(part), str(part["n"]))
    for name, value in model["sections"].items():
        table.add_row(f"RewardBench {name}", f"{value:.3f}", "")
    if model["rewardbench2_ties"]:
        ties = model["rewardbench2_ties"]
        table.add_row("RewardBench 2 Ties", f"{ties['score']:.3f}", f"{ties['prompts']} prompts")
    console.print(table)
    words = [f"mean margin {model['mean_margin']:+.3f}"]
    if "calibration" in model:
        words += [f"ECE {model['calibration']['ece']:.3f}"]
        words += length_bias(model["length_bias"])
    words.append(
        f"{model['comparisons_per_second']:.1f} comparisons/s, "
        f"{model['tokens_per_second']:.0f} tokens/s"
    )
    say(console, "; ".join(words))
    for key, text in _ODD.items():
        if model[key]:
            say(console, f"{model[key]} {text}", "yellow")
