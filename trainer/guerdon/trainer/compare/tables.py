"""The numbers of a comparison as cells of text. Pure; the report and the terminal show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from guerdon.trainer.common.measuring.statistics import Estimate
from guerdon.trainer.common.report import interval
from guerdon.trainer.compare.comparison import Result, RunGroup
from guerdon.trainer.compare.sentences import NONE, VERDICTS, plain, short, signed


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and what stands small beneath it."""

    text: str = NONE
    note: str = ""
    value: float | None = None
    half: str = ""
    """Half of the interval's width, as it is written."""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A measure, by run."""

    name: str
    hint: str
    """An explanation in a few words."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows under a heading."""

    heading: str
    rows: tuple[Row, ...]


Make = Callable[[Result], Cell]


def parts(group: RunGroup) -> list[Part]:
    """All measures of a group's runs, by what they are about; rows that nobody has are left out."""
    return [
        Part(heading, kept)
        for heading, makers in _PARTS
        if (kept := tuple(_row(group, *maker) for maker in makers if _known(group, maker[2])))
    ]


def _known(group: RunGroup, make: Make) -> bool:
    return any(make(result).text != NONE for result in group.results)


def _row(group: RunGroup, name: str, hint: str, make: Make, high: bool = False) -> Row:
    cells = [make(result) for result in group.results]
    if high:  # the start is no contestant
        values = {
            i: value
            for i, result in enumerate(group.results)
            if not result.run.is_start and (value := cells[i].value) is not None
        }
        top = max(values, key=lambda i: values[i], default=-1)
        if list(values.values()).count(values.get(top, 0.0)) == 1 < len(values):
            cells[top] = replace(cells[top], best=True)
    return Row(name, hint, tuple(cells))


def _mean(name: str, *, before: bool = False, sign: bool = True) -> Make:
    def make(result: Result) -> Cell:
        measured = result.before if before else result.run.after
        found = measured.estimates.get(name) if measured else None
        return estimated(found, sign=sign)

    return make


def estimated(found: Estimate | None, *, sign: bool = True) -> Cell:
    """A mean over its interval."""
    if found is None:
        return Cell()
    half = (
        plain((found.high - found.low) / 2)
        if found.low is not None and found.high is not None
        else ""
    )
    write = signed if sign else plain
    return Cell(write(found.mean), interval(found.as_dict(), write), found.mean, half)


def percentage(found: Estimate | None, places: int = 0) -> Cell:
    """A share in per cent, over its interval."""
    if found is None:
        return Cell()
    ends = ""
    if found.low is not None and found.high is not None:
        # Student's interval of a share may reach beyond what a share can be.
        ends = f"{100 * max(0.0, found.low):.{places}f} to {100 * min(1.0, found.high):.{places}f}"
    return Cell(f"{100 * found.mean:.{places}f}%", ends, found.mean)


def _share(name: str, places: int = 0) -> Make:
    def make(result: Result) -> Cell:
        after = result.run.after
        return percentage(after.estimates.get(name) if after else None, places)

    return make


def _gain(name: str) -> Make:
    return lambda result: estimated(result.gains.get(name))


def _distinct(n: int) -> Make:
    def make(result: Result) -> Cell:
        found = result.run.after.distinct.get(n) if result.run.after else None
        return Cell() if found is None else Cell(plain(found))

    return make


def _wins(result: Result) -> Cell:
    after = result.run.after
    if not after or not after.wins:
        return Cell()
    found = [(name, percentage(rate)) for name, rate in after.wins.items()]
    first = found[0][1]
    others = [
        f"{name.replace('heldout_reward', 'held out')} {cell.text}" for name, cell in found[1:]
    ]
    return replace(first, note="; ".join([first.note, *others] if first.note else others))


def _per_kl(result: Result) -> Cell:
    return Cell() if result.per_kl is None else Cell(signed(result.per_kl), value=result.per_kl)


def _verdict(result: Result) -> Cell:
    return Cell(VERDICTS[result.overoptimisation.verdict]) if result.overoptimisation else Cell()


def _accuracy(result: Result) -> Cell:
    found = result.run.accuracy
    if found is None:
        return Cell()
    value, low, high = (f"{100 * number:.0f}" for number in found)
    return Cell(f"{value}%", f"{low} to {high}")


def _nll(result: Result) -> Cell:
    found = result.run.nll
    return Cell() if found is None else Cell(plain(found[1]), f"{plain(found[0])} before")


def _text(of: Callable[[Result], object]) -> Make:
    def make(result: Result) -> Cell:
        found = of(result)
        return Cell() if found is None or found == "" else Cell(str(found))

    return make


def recipe_name(result: Result) -> str:
    """SFT, DPO, …; the policy that they began from is the start."""
    _, online, name = result.run.recipe.rpartition("online-")
    if name:
        return f"Online {name.upper()}" if online else name.upper()
    return "the start" if result.run.is_start else "a policy"


def _minutes(result: Result) -> Cell:
    found = result.run.minutes
    return Cell() if found is None else Cell(plain(found, 1))


_PARTS: tuple[tuple[str, tuple[tuple[str, str, Make, bool], ...]], ...] = (
    (
        "The run",
        (
            ("recipe", "", _text(recipe_name), False),
            ("base policy", "what it began from", _text(lambda r: short(r.run.base)), False),
            ("data", "what it was trained on", _text(lambda r: short(r.run.data)), False),
            ("seed", "", _text(lambda r: r.run.seed), False),
            ("steps", "of the optimiser", _text(lambda r: r.run.steps), False),
            ("minutes", "of the whole run", _minutes, False),
        ),
    ),
    (
        "Reward",
        (
            ("reward before", "of the start", _mean("reward", before=True), False),
            ("reward", "mean over prompts", _mean("reward"), True),
            ("gain", "prompt by prompt", _gain("reward"), True),
            (
                "held-out reward",
                "by a model that training never saw",
                _mean("heldout_reward"),
                True,
            ),
            ("held-out gain", "prompt by prompt", _gain("heldout_reward"), True),
            ("held-out says", "see over-optimisation", _verdict, False),
            ("win rate", "against the baseline; a half is even", _wins, True),
        ),
    ),
    (
        "Distance",
        (
            ("KL", "nats a completion, from the reference", _mean("kl", sign=False), False),
            ("gain per nat", "gain of reward over KL", _per_kl, True),
        ),
    ),
    (
        "Text",
        (
            ("length", "tokens", _mean("length", sign=False), False),
            ("finished", "ended by themselves", _share("finished"), False),
            ("distinct-1", "different tokens over all", _distinct(1), False),
            ("distinct-2", "the same for pairs", _distinct(2), False),
            ("repetition", "share of repeated 4-grams", _share("repetition", 1), False),
            ("refusals", "share of completions", _share("refusal"), False),
            ("harmful", "share, by the classifier", _share("harmful"), False),
        ),
    ),
    (
        "Held-out pairs or answers",
        (
            ("implied accuracy", "pairs that the implied reward gets right", _accuracy, False),
            ("−log-likelihood", "nats a token of good answers", _nll, False),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Subgroups:
    """A field of the prompts: reward by its values, by run."""

    field: str
    name: str
    """The name of the measure."""
    runs: tuple[str, ...]
    rows: tuple[Row, ...]


def subgroups(group: RunGroup) -> list[Subgroups]:
    """Reward, and held-out reward, by the values of every field that a run's evaluation has."""
    having = [result.run for result in group.measured if result.run.after]
    fields = dict.fromkeys(name for run in having if run.after for name in run.after.subgroups)
    found = []
    for name in fields:
        for measure in ("reward", "heldout_reward"):
            by_run: list[Mapping[str, Mapping[str, Estimate]]] = [
                run.after.subgroups.get(name, {}) if run.after else {} for run in having
            ]
            values = dict.fromkeys(value for values in by_run for value in values)
            rows = [
                Row(
                    value,
                    _count(by_run, value),
                    tuple(estimated(values.get(value, {}).get(measure)) for values in by_run),
                )
                for value in values
            ]
            if any(cell.text != NONE for row in rows for cell in row.cells):
                runs = tuple(run.name for run in having)
                found.append(
                    Subgroups(name, measure.replace("heldout_", "held-out "), runs, tuple(rows))
                )
    return found


def _count(by_run: list[Mapping[str, Mapping[str, Estimate]]], value: str) -> str:
    counts = {
        found.n
        for values in by_run
        for name, found in values.get(value, {}).items()
        if name == "reward"
    }
    return f"{max(counts)} prompts" if counts else ""
