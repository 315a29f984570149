"""What a person sees of a run of `guerdon train reward`; reads counts and summaries alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.trainer.common.report import cell, length_bias, say, show_groups, spent
from guerdon.trainer.common.run_folder import RunFolder


def show_summary(summary: dict[str, Any], folder: RunFolder, console: Console) -> None:
    """The result as a short table, and what to do with it."""
    table = Table(show_header=False)
    _ROWS[summary["objective"]](summary, table)
    seconds = summary["seconds"]
    table.add_row("seconds", f"{sum(seconds.values()):.0f} ({spent(seconds)})")
    console.print(table)
    for field, groups in summary["subgroups"].items():
        show_groups(field, groups, console)
    if not summary["above_chance"]:
        console.print(f"[yellow]{_CHANCE[summary['objective']]}[/yellow]")
    say(console, f"model: {folder.path}")
    name = folder.path.resolve().name
    say(console, f"serve it: guerdon serve reward --model {name}={folder.path}")


# Preference


def _preference(summary: dict[str, Any], table: Table) -> None:
    low, high = summary["accuracy_low"], summary["accuracy_high"]
    pairs = summary["data"]["eval"]["pairs"]
    table.add_row(
        "held-out accuracy",
        f"{summary['accuracy']:.3f} (95 %: {low:.3f}–{high:.3f}; {pairs} pairs)",
    )
    if summary.get("accuracy_before") is not None:
        table.add_row("before training", f"{summary['accuracy_before']:.3f}")
    table.add_row("calibration", _calibration(summary["calibration"]))
    warmth = summary["temperature"]
    if warmth:
        table.add_row(
            "with a temperature",
            f"T {warmth['value']:.2f} would give ECE {warmth['ece']:.3f}, "
            f"log loss {warmth['log_loss']:.3f}",
        )
    if summary.get("ensemble"):
        _ensemble(summary["ensemble"], table)
    table.add_row("length bias", "; ".join(length_bias(summary["length_bias"])))


def _calibration(found: Mapping[str, Any]) -> str:
    return f"ECE {found['ece']:.3f}, Brier {found['brier']:.3f}, log loss {found['log_loss']:.3f}"


def _ensemble(found: Mapping[str, Any], table: Table) -> None:
    members = [f"seed {member['seed']}: {cell(member['accuracy'])}" for member in found["members"]]
    table.add_row("members", "\n".join(members))
    combined = [
        f"{name}: {cell(part['accuracy'])}, ECE {part['ece']:.3f}"
        for name, part in found["aggregations"].items()
    ]
    table.add_row("together, by", "\n".join(combined))
    table.add_row(
        "agreement",
        f"two members order a pair alike {found['same_order']:.3f} of the time; "
        f"spread {found['spread']:.3f}",
    )
    alike, apart = found["unanimous"], found["divided"]
    words = [f"accuracy {cell(alike)} where all agree"] if alike else []
    words += [f"{cell(apart)} on the {apart['n']} pairs where they part"] if apart else []
    table.add_row("", "; ".join(words))


# Attributes


def _attributes(summary: dict[str, Any], table: Table) -> None:
    for name, found in summary["attributes"].items():
        table.add_row(
            escape(name),
            f"RMSE {cell(found['rmse'])}, R² {cell(found['r2'])}, Pearson "
            f"{cell(found['pearson'])}, Spearman {cell(found['spearman'])} (n {found['n']})",
        )
    score = summary["score"]
    table.add_row(
        "weighted score",
        f"Pearson {cell(score['pearson'])}, Spearman {cell(score['spearman'])} "
        f"(n {score['n']}, rows with every attribute)",
    )
    if summary["before"]:
        table.add_row("before training", f"RMSE {summary['before']['eval_rmse']:.3f}")
    table.add_row("after", f"RMSE {summary['rmse']:.3f} over all labels")


# Process


def _process(summary: dict[str, Any], table: Table) -> None:
    steps, first = summary["steps_right"], summary["first_error"]
    table.add_row("step accuracy", f"{cell(summary['step_accuracy'])} of {steps['n']} steps")
    table.add_row("steps that are right", f"{steps['share']:.3f} by label")
    table.add_row("step AUC", cell(summary["step_auc"]))
    if summary["before"]:
        table.add_row("before training", f"accuracy {summary['before']['eval_accuracy']:.3f}")
    table.add_row(
        "first error",
        f"found in {cell(first['erroneous'])} of the wrong solutions; "
        f"{cell(first['correct'])} of the right ones pass; F1 {cell(first['f1'])}",
    )
    table.add_row("solution AUC", cell(summary["solution_auc"]))
    table.add_row("calibration", _calibration(summary["calibration"]))


_ROWS: dict[str, Callable[[dict[str, Any], Table], None]] = {
    "preference": _preference,
    "attributes": _attributes,
    "process": _process,
}
_CHANCE = {
    "preference": "The accuracy can't be told from chance: don't use this model as it is.",
    "attributes": "The weighted score can't be told from chance: don't use this model as it is.",
    "process": "Right steps can't be told from wrong ones: don't use this model as it is.",
}
