"""Words and tables in which every recipe shows a person its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.trainer.common.policy_folder import PolicyFolder

_MOST_GROUPS = 20
"""The number of groups that are shown, the largest ones; summary.json has all."""


ODD = {
    "bad_rows": "malformed rows were skipped",
    "too_long": "{unit} were left out as too long",
    "several_turns": "{unit} were left out: an answer has several turns",
    "same_tokens": "{unit} were left out: both answers are the same tokens",
    "duplicates": "{unit} occur more than once",
    "contradictions": "{unit} contradict another one",
    "empty_answers": "{unit} have an empty answer, and are {empty}",
    "reasoning_dropped": "{unit} have reasoning that the chat template leaves out",
    "names_dropped": "{unit} have names that the chat template leaves out",
    "prompts_in_train": "held-out {unit} have a prompt that is trained on",
    "unused_margins": "{unit} have a margin, which is not used: --margin-key margin does",
}
"""Kinds of rows that are left out or odd, as they are counted and said."""


def show_counts(counts: Mapping[str, Any], console: Console, *, empty: str = "kept") -> None:
    """Show the data's sizes, and a warning for all that is odd.

    Args:
        counts: of the parts `train` and `eval`.
        console: where.
        empty: what is done with rows that have an empty answer.
    """
    for split in ("train", "eval"):
        found = counts[split]
        unit = "pairs" if "pairs" in found else "rows"
        sizes = ", ".join(f"{name} {value}" for name, value in found.get("tokens", {}).items())
        tokens = f"; tokens: {sizes}" if sizes else ""
        say(console, f"{split}: {found[unit]} {unit} of {found['source']}{tokens}")
        for line in found.get("about", ()):
            say(console, f"  {line}")
        if found.get("margins"):
            least, largest, median = (found["margins"][key] for key in ("least", "largest", "p50"))
            say(console, f"  margins: {least:g} to {largest:g}, median {median:g}")
        for key in (key for key in ODD if found.get(key)):
            lines = found["lines"].get(key, ())
            where = f": line {_listed(lines, found[key])}" if lines else ""
            text = ODD[key].format(unit=unit, empty=empty)
            say(console, f"  {found[key]} {text}{where}", "yellow")
            for error in found["errors"] if key == "bad_rows" else ():
                say(console, f"    {error}", "yellow")


def _listed(lines: Sequence[int], count: int) -> str:
    """Line numbers, of which there may be more."""
    return ", ".join(map(str, lines)) + (", …" if count > len(lines) else "")


def say(console: Console, text: str, style: str = "") -> None:
    """A line of words that may be anybody's."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def length_bias(found: Mapping[str, Any]) -> list[str]:
    """How scores go with the length of answers, in words."""
    words = []
    if found["delta_correlation"] is not None:
        words.append(f"correlation of Δ with length {found['delta_correlation']:+.2f}")
    for key, text in (("chosen_shorter", "shorter"), ("chosen_longer", "longer")):
        if found[key]:
            part = f"accuracy {found[key]['value']:.2f} where the {text} is better"
            words.append(f"{part} ({found[key]['n']})")
    return words


def spent(seconds: Mapping[str, float]) -> str:
    """The seconds by phase, in words."""
    return ", ".join(f"{name} {took:.0f}" for name, took in seconds.items() if took >= 0.5)


def show_policy(folder: PolicyFolder, console: Console) -> None:
    """Say where the policy is, and how the reward that it implies is served, if it was left."""
    say(console, f"policy: {folder.final}")
    if folder.reward.is_dir():
        say(console, f"its implied reward: guerdon serve reward --model mine={folder.reward}")


def show_groups(field: str, groups: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """A table of one field's values: n, and the numbers of each."""
    shown = sorted(groups.items(), key=lambda item: -item[1]["n"])[:_MOST_GROUPS]
    columns = [key for key in shown[0][1] if key != "n"]
    table = Table(escape(field), "n", *(escape(key.replace("_", " ")) for key in columns))
    for value, found in shown:
        table.add_row(escape(value), str(found["n"]), *(cell(found[key]) for key in columns))
    console.print(table)
    if len(groups) > len(shown):
        console.print(f"{len(groups) - len(shown)} smaller groups are in summary.json")


def cell(value: Any) -> str:
    """A number, or one with its interval, as a cell of a table."""
    if isinstance(value, Mapping):
        return with_interval(value, "{:.3f}".format, "–")
    return "–" if value is None else f"{value:.3f}"


def with_interval(
    found: Mapping[str, Any], write: Callable[[float], str], between: str = " to "
) -> str:
    """A value, and in brackets the ends of its interval where it has one.

    Args:
        found: an estimate as JSON has it.
        write: each number as text.
        between: what stands between the ends.
    """
    ends = interval(found, write, between)
    value = write(found["mean"] if "mean" in found else found["value"])
    return f"{value} ({ends})" if ends else value


def interval(found: Mapping[str, Any], write: Callable[[float], str], between: str = " to ") -> str:
    """The ends of the interval alone; empty where there is none."""
    low, high = found["low"], found["high"]
    return "" if low is None else f"{write(low)}{between}{write(high)}"


def with_error(found: Mapping[str, Any], write: Callable[[float], str]) -> str:
    """A mean, and its standard error where it has one."""
    error = "" if found["se"] is None else f" ± {write(found['se'])}"
    return write(found["mean"]) + error
