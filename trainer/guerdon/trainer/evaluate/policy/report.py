"""What an evaluation found, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from guerdon.trainer.common.report import interval, say, spent, with_error, with_interval

NAMES = {
    "reward": "reward",
    "heldout_reward": "held-out reward",
    "kl": "KL (nats)",
    "length": "length (tokens)",
    "finished": "finished",
    "repetition": "repeated 4-grams",
    "refusal": "opens as a refusal",
    "harmful": "harmful",
}
MOST = 20
"""Values of a field that are shown: those with the most prompts."""


def show(found: Mapping[str, Any], output: Path, console: Console) -> None:
    """The figures as tables.

    Args:
        found: evaluation.json.
        output: its folder.
        console: where.
    """
    console.print(_table(found))
    rates = found["win_rate"]
    if rates is not None:
        for name, rate in rates.items():
            if name != "against":
                by, won = NAMES.get(name, name), with_interval(rate, "{:.1%}".format)
                say(console, f"win rate against {rates['against']} by {by}: {won}")
    if found["reward_per_kl"] is not None:
        say(console, f"reward per nat of KL: {found['reward_per_kl']:+.3f}")
    elif rates is not None:
        say(console, f"no reward per nat of KL: {found['reward_per_kl_reason']}")
    for field, values in found["subgroups"].items():
        console.print(_by(field, values))
        if len(values) > MOST:
            say(console, f"and {len(values) - MOST} more values")
    for text in found["warnings"]:
        say(console, text, "yellow")
    took = spent(found["seconds"])
    say(
        console,
        f"{found['completions']} completions of {found['prompts']['count']} prompts"
        + (f"; seconds: {took}" if took else ""),
    )
    say(console, f"evaluation: {output}")


def _table(found: Mapping[str, Any]) -> Table:
    difference = found["difference"]
    table = Table("measure", "mean", "95 %")
    if difference is not None:
        table.add_column("less the baseline")
    for name, value in found["measures"].items():
        cells = [escape(NAMES.get(name, name)), _number(value["mean"]), _interval(value)]
        if difference is not None:
            change = difference.get(name)
            cells.append(f"{_number(change['mean'], '+')} {_interval(change)}" if change else "")
        table.add_row(*cells)
    for name in ("distinct_1", "distinct_2"):
        table.add_row(name.replace("_", "-"), f"{found[name]:.3f}")
    return table


def _by(field: str, values: Mapping[str, Mapping[str, Any]]) -> Table:
    first = next(iter(values.values()))
    columns = [
        name
        for name in ("reward", "heldout_reward", "win_rate", "kl", "length", "refusal", "harmful")
        if name in first
    ]
    with_noise = ("reward", "win_rate")
    heads = ["win rate" if name == "win_rate" else name.replace("_", "-") for name in columns]
    table = Table(escape(field), "n", *heads)
    most = sorted(values, key=lambda value: -values[value]["reward"]["n"])[:MOST]
    for value, measures in values.items():
        if value in most:
            cells = [
                with_error(measures[name], _number)
                if name in with_noise
                else _number(measures[name]["mean"])
                for name in columns
            ]
            table.add_row(escape(value) or "(none)", str(measures["reward"]["n"]), *cells)
    return table


def _interval(found: Mapping[str, Any]) -> str:
    ends = interval(found, _number)
    return ends and f"({ends})"


def _number(value: float, sign: str = "") -> str:
    """Short enough for a table: as many digits as are worth reading."""
    return f"{value:{sign}.{3 if abs(value) < 9.9995 else 1}f}"
