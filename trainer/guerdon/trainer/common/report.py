"""Words and tables in which every recipe shows a person its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.trainer.common.policy_folder import PolicyFolder

_MOST_GROUPS = 20
"""The number of groups that are shown, the largest ones; summary.json has all."""


def listed(lines: Sequence[int], count: int) -> str:
    """Line numbers, of which there may be more."""
    return ", ".join(map(str, lines)) + (", …" if count > len(lines) else "")


def say(console: Console, text: str, style: str = "") -> None:
    """A line of words that may be anybody's."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


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
        return share(value)
    return "–" if value is None else f"{value:.3f}"


def share(found: Mapping[str, Any] | None) -> str:
    """A number with its interval."""
    if found is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"
