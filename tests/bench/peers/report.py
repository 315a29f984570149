"""Tables, a picture and a file of what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tests.bench.common import median, spread
from tests.bench.peers.contenders import ABSENT
from tests.bench.peers.field import Field
from tests.bench.peers.workloads import LOADS, Arrived, Beside, Load, Start, Turns

Rows = Sequence[Sequence[str]]


class Report:
    """What a run found, for people and for programs.

    Args:
        console: where tables go.
        field: whom they are about.
        conditions: what was the same for all, in words.
    """

    def __init__(self, console: Console, field: Field, conditions: str) -> None:
        self.console = console
        self.field = field
        self.conditions = conditions
        self.first = field.all[0].name
        self.measured: dict[str, Any] = {"conditions": conditions}

    def closed(self, found: Sequence[Turns], apart: Mapping[str, float]) -> None:
        """(a) and (b): ratios, and what is behind them."""
        self.measured["differences"] = dict(apart)
        self.measured["closed"] = {
            turns.case.label: {
                name: [[turn.seconds, turn.latencies] for turn in rounds]
                for name, rounds in turns.of.items()
            }
            for turns in found
        }
        labels = [turns.case.label for turns in found]

        def ratio(name: str) -> list[str]:
            cells = [
                spread(turns.ratios(name, self.first)) if name in turns.of else "–"
                for turns in found
            ]
            return [*cells, f"{apart[name]:.1e}" if name in apart else "–"]

        self._table(
            "times as long as this server over gRPC, median (smallest to largest)",
            [*labels, "scores differ by"],
            self._rows(ratio),
        )

        def calls(name: str) -> list[str]:
            return [_rate(turns.of[name]) if name in turns.of else "–" for turns in found]

        self._table(
            "calls per second; milliseconds of a call, median and 99 %", labels, self._rows(calls)
        )

    def open(self, found: Mapping[str, Sequence[Load]]) -> None:
        """(c): goodput and percentiles."""
        self.measured["open"] = _plain(found)

        def row(name: str) -> list[str]:
            return [_load([x for x in found.get(name, ()) if x.share == load]) for load in LOADS]

        self._table(
            "open loop: answered in time ÷ own capacity; milliseconds, median and 99 %",
            [f"{load:.0%} of capacity" for load in LOADS],
            self._rows(row),
        )

    def beside(self, found: Mapping[str, Sequence[Beside]]) -> None:
        """(d): what bulk work costs online calls, and the other way round."""
        self.measured["beside"] = _plain(found)

        def row(name: str) -> list[str]:
            rounds = found.get(name, ())
            if not rounds:
                return ["–"] * 4
            online = [latency for one in rounds for latency in one.online]
            alone = [latency for one in rounds for latency in one.alone]
            medians = [median(one.online) / median(one.alone) for one in rounds]
            slowest = np.percentile(online, 99) / np.percentile(alone, 99)
            return [
                f"{_milliseconds(alone, 50)}, {_milliseconds(alone, 99)}",
                f"{_milliseconds(online, 50)}, {_milliseconds(online, 99)}",
                f"{spread(medians, 1)}; {slowest:.1f}",
                spread([one.batch for one in rounds]),
            ]

        self._table(
            "online calls at a tenth of the capacity, beside bulk work with 64 in flight",
            [
                "alone, ms: median, 99 %",
                "beside, ms: median, 99 %",
                "beside ÷ alone: median; 99 %",
                "bulk ÷ bulk alone",
            ],
            self._rows(row),
        )

    def one_by_one(self, found: Mapping[str, Sequence[Arrived]]) -> None:
        """(g): seconds, ratios, and tokens computed."""
        self.measured["one by one"] = _plain(found)

        def row(name: str) -> list[str]:
            if name not in found or self.first not in found:
                return ["–"] * 3
            pairs = zip(found[name], found[self.first], strict=False)
            ratios = [mine.seconds / first.seconds for mine, first in pairs]
            computed = [one.computed for one in found[name] if one.computed is not None]
            seconds = spread([one.seconds for one in found[name]])
            return [seconds, spread(ratios), spread(computed) if computed else "–"]

        title = "8 answers to each of 8 prompts, one by one within 5 seconds"
        columns = [
            "seconds until all are answered",
            "÷ this server's",
            "tokens computed ÷ those of grouped calls",
        ]
        self._table(title, columns, self._rows(row))

    def file(self, found: Mapping[str, float], sequences: int) -> None:
        """(e): seconds, and ratios."""
        self.measured["file"] = {"sequences": sequences, "seconds": dict(found)}

        def row(name: str) -> list[str]:
            if name not in found or self.first not in found:
                return ["–"] * 2
            return [f"{found[name]:.1f}", f"{found[name] / found[self.first]:.2f}"]

        title = f"{sequences} sequences from a file, 64 in flight"
        self._table(title, ["seconds", "÷ this server's"], self._rows(row))

    def starts(self, found: Mapping[str, Sequence[Start]]) -> None:
        """(f): seconds and memory."""
        self.measured["starts"] = _plain(found)

        def row(name: str) -> list[str]:
            rounds = found.get(name, ())
            if not rounds:
                return ["–"] * 2
            memory = spread([start.memory / 2**20 for start in rounds], 0)
            return [spread([start.seconds for start in rounds], 1), memory]

        columns = ["seconds to the first answer", "MiB after 64 calls"]
        self._table("start-up and memory, each alone", columns, self._rows(row))

    def end(self, folder: Path, name: str) -> None:
        """Say who is missing, and write what was measured."""
        for contender in self.field.all:
            if reason := self.field.out.get(contender.name):
                self.console.print(f"{contender.label}: {reason}")
        for label, reason in ABSENT.items():
            self.console.print(f"{label}: {reason}")
        self.measured["out"] = self.field.out
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{name}.json"]
        written[0].write_text(json.dumps(self.measured, indent=1) + "\n")
        if self.measured.get("closed"):
            written.append(folder / f"{name}.png")
            self._draw(written[1])
        self.console.print(f"written: {', '.join(map(str, written))}")

    def _rows(self, cells: Callable[[str], list[str]]) -> Rows:
        rows = [(c, cells(c.name)) for c in self.field.all]
        return [[c.label, *row] for c, row in rows if any(cell != "–" for cell in row)]

    def _table(self, title: str, columns: Sequence[str], rows: Rows) -> None:
        shown = Table(title=f"{title}\n{self.conditions}", title_justify="left")
        for column in ("", *columns):
            shown.add_column(column)
        for row in rows:
            shown.add_row(*row)
        self.console.print(shown)

    def _draw(self, path: Path) -> None:
        """Bars of the ratios, from the smallest to the largest of the rounds."""
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        closed = self.measured["closed"]
        figure, panels = plt.subplots(
            1, len(closed), figsize=(3 + 2.4 * len(closed), 3.2), sharey=True, squeeze=False
        )
        for panel, (label, of) in zip(panels[0], closed.items(), strict=True):
            shown = [c for c in reversed(self.field.all) if c.name in of]
            for contender in shown:
                pairs = zip(of[contender.name], of[self.first], strict=True)
                ratios = [mine[0] / first[0] for mine, first in pairs]
                middle = median(ratios)
                panel.barh(
                    contender.label,
                    middle,
                    xerr=[[middle - min(ratios)], [max(ratios) - middle]],
                    color="tab:blue" if contender.name == self.first else "tab:gray",
                )
            panel.axvline(1, color="black", linewidth=0.8)
            panel.set_title(label, fontsize=9)
        figure.suptitle(
            f"times as long as this server over gRPC (shorter is faster)\n{self.conditions}",
            fontsize=9,
        )
        figure.tight_layout()
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _rate(rounds: Sequence[Any]) -> str:
    latencies = [latency for turn in rounds for latency in turn.latencies]
    rate = median([len(turn.latencies) / turn.seconds for turn in rounds])
    return f"{rate:.2f}; {_milliseconds(latencies, 50)}, {_milliseconds(latencies, 99)}"


def _load(rounds: Sequence[Load]) -> str:
    latencies = [latency for one in rounds for latency in one.latencies]
    if not rounds:
        return "–"
    goodput = spread([one.goodput for one in rounds])
    if not latencies:
        return goodput
    return f"{goodput}; {_milliseconds(latencies, 50)}, {_milliseconds(latencies, 99)}"


def _milliseconds(seconds: Sequence[float], percentile: float) -> str:
    return f"{1000 * np.percentile(seconds, percentile):.0f}"


def _plain(found: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(one) for one in rounds] for name, rounds in found.items()}
