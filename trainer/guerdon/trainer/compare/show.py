"""The comparison on a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guerdon.trainer.compare import sentences, tables
from guerdon.trainer.compare.comparison import Result, RunGroup
from guerdon.trainer.compare.runs import Run

SHOWN = (
    "reward",
    "gain",
    "held-out reward",
    "held-out says",
    "win rate",
    "KL",
    "length",
    "minutes",
)
"""Measures that a terminal has room for."""
WIDE = 120
"""Columns from which there is room for all of them, and for their noise."""
LEFT_OUT = ("win rate", "length", "minutes")
"""Columns that are left out where there is no room."""


def show(groups: Sequence[RunGroup], console: Console) -> None:
    """A table of runs for each group, and all that the report says in words."""
    for group in groups:
        console.print(_table(group, wide=console.width >= WIDE))
        _say(console, sentences.terms(group), "dim")
    for text in sentences.not_comparable(groups):
        _say(console, text, "yellow")
    for group in groups:
        for text in sentences.headlines(group):
            _say(console, text)
    for group in groups:
        for result in group.trained:
            if result.overoptimisation:
                bad = result.overoptimisation.verdict in ("gamed", "unconfirmed")
                _say(
                    console,
                    sentences.overoptimisation_sentence(result.run.name, result.overoptimisation),
                    "yellow" if bad else "",
                )
        if sentences.together(group):
            _say(console, sentences.together(group), "dim")
        for text in group.notes:
            _say(console, text, "yellow")


def _say(console: Console, text: str, style: str = "") -> None:
    """A sentence that may hold anything."""
    console.print(Text(" ".join(text.split()), style=style), soft_wrap=True)


def _table(group: RunGroup, *, wide: bool) -> Table:
    found = {row.name: row for part in tables.parts(group) for row in part.rows}
    names = [name for name in SHOWN if wide or name not in LEFT_OUT]
    rows = [found[name] for name in names if name in found]
    table = Table()
    for name in ("run", "recipe", *(row.name for row in rows)):
        table.add_column(Text(name), justify="left" if name in ("run", "recipe") else "right")
    for i, result in enumerate(group.results):
        cells = [_cell(row.cells[i], noise=wide) for row in rows]
        table.add_row(Text(result.run.name), Text(tables.recipe_name(result)), *cells)
    return table


def _cell(cell: tables.Cell, *, noise: bool) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    return text.append(f" ±{cell.half}", style="dim") if cell.half and noise else text


def as_json(groups: Sequence[RunGroup]) -> dict[str, Any]:
    """Everything, for other programs."""
    return {
        "format": 1,
        "comparable": len(groups) == 1,
        "not_comparable": sentences.not_comparable(groups),
        "groups": [
            {
                "terms": _terms(group),
                "start": group.start.name if group.start else None,
                "runs": [_result(result) for result in group.results],
                "found": sentences.headlines(group) + sentences.overoptimisation_sentences(group),
                "notes": list(group.notes),
            }
            for group in groups
        ],
    }


def _terms(group: RunGroup) -> dict[str, Any] | None:
    if group.terms is None:
        return None
    found = dataclasses.asdict(group.terms)
    found["rewards"] = [{"weight": weight, "name": name} for weight, name in group.terms.rewards]
    return found


def _result(result: Result) -> dict[str, Any]:
    run = result.run
    found: dict[str, Any] = {
        "name": run.name,
        "path": str(run.path),
        "recipe": run.recipe or None,
        "start": run.is_start,
        "base": run.base,
        "data": run.data or None,
        "seed": run.seed,
        "steps": run.steps,
        "minutes": run.minutes,
        "gains": {name: gain.as_dict() for name, gain in result.gains.items()},
        "gain_per_kl": result.per_kl,
        "held_out_says": result.overoptimisation.verdict if result.overoptimisation else None,
        "curve": [dataclasses.asdict(point) for point in result.curve],
        "implied_accuracy": run.accuracy
        and dict(zip(("value", "low", "high"), run.accuracy, strict=True)),
        "nll": run.nll and dict(zip(("before", "after"), run.nll, strict=True)),
        "warnings": list(run.warnings),
    }
    return found | _measured(run)


def _measured(run: Run) -> dict[str, Any]:
    after = run.after
    if after is None:
        return {"measures": None}
    return {
        "measures": {name: found.as_dict() for name, found in after.estimates.items()},
        "distinct_1": after.distinct.get(1),
        "distinct_2": after.distinct.get(2),
        "win_rate": {"against": after.against}
        | {name: found.as_dict() for name, found in after.wins.items()}
        if after.wins
        else None,
        "subgroups": {
            name: {
                value: {measure: found.as_dict() for measure, found in measures.items()}
                for value, measures in values.items()
            }
            for name, values in after.subgroups.items()
        },
    }
