"""The report: one HTML file with everything in it. Opens offline, asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files

from guerdon.trainer.compare import tables, words
from guerdon.trainer.compare.comparing import Group, Result
from guerdon.trainer.compare.html import Html, join, tag
from guerdon.trainer.compare.plots import (
    GLYPHS,
    Places,
    look,
    places,
    reward_against_kl,
    rewards_apart,
)
from guerdon.trainer.compare.runs import Answer

GENERATOR = "guerdon compare"
"""The generator named in the page's head: a file that has it may be replaced."""
SHOWN, MORE = 6, 24
"""Prompts whose answers are shown, and those that can be opened beside them."""
VALUES = 60
"""Most values of a field that are shown."""
LONGEST = 4000
"""Characters of an answer."""


def page(groups: Sequence[Group]) -> str:
    """The whole report."""
    where = places(groups)
    runs = sum(len(group.results) for group in groups)
    starts = sum(result.run.is_start for group in groups for result in group.results)
    title = f"{runs - starts} run{'' if runs - starts == 1 else 's'} compared"
    body = tag(
        "body",
        tag("h1", title),
        _legend(groups, where),
        _notice("Not on the same axes", words.not_comparable(groups)),
        *(part for group in groups for part in _group(group, where, several=len(groups) > 1)),
        _footer(),
    )
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta name="generator" content="{GENERATOR} {version("guerdon")}">'),
        # Whatever a text smuggled in, nothing of it would run or be fetched.
        Html(
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        ),
        tag("title", title),
        tag("style", Html(files(__package__).joinpath("page.css").read_text(encoding="utf-8"))),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def _legend(groups: Sequence[Group], where: Places) -> Html:
    chips = [
        tag("li", _name(result, where), " ", tag("span", tables.recipe_of(result), class_="soft"))
        for group in groups
        for result in group.results
    ]
    return tag("ul", *chips, class_="chips")


def _name(result: Result, where: Places) -> Html:
    """A run's name in its colour, with its shape."""
    return _coloured(result.run.name, where)


def _coloured(name: str, where: Places) -> Html:
    place = where.get(name)
    if place is None:
        return tag("b", name)
    colour, shape = look(place)
    return tag("b", f"{GLYPHS[shape]} {name}", style=f"color: var(--c{colour})")


def _group(group: Group, where: Places, *, several: bool) -> list[Html | None]:
    names = ", ".join(result.run.name for result in group.results)
    found = words.headlines(group)
    return [
        tag("h2", names if several else "What was found"),
        tag("p", words.terms(group), class_="soft"),
        tag("ul", *(tag("li", text) for text in found)) if found else None,
        _plots(group, where),
        tag("h3", "Side by side"),
        _table(group, where),
        _notice("Worth knowing", group.notes),
        *_over_optimisation(group, where),
        *_answers(group, where),
        *_subgroups(group, where),
    ]


def _notice(heading: str, texts: Sequence[str]) -> Html | None:
    if not texts:
        return None
    return tag(
        "div", tag("b", heading), tag("ul", *(tag("li", text) for text in texts)), class_="notice"
    )


def _plots(group: Group, where: Places) -> Html | None:
    found = [
        tag("figure", svg, tag("figcaption", f"{said} against KL. Bars are 95 % intervals.{more}"))
        for measure, said in (("reward", "Reward"), ("heldout_reward", "Held-out reward"))
        if (svg := reward_against_kl(group, where, measure)) is not None
        for more in [_curves(group, measure)]
    ]
    return tag("div", *found, class_="plots") if found else None


def _curves(group: Group, measure: str) -> str:
    """What to say of the curves, where there are any."""
    held_out = measure == "heldout_reward"
    points = [point for result in group.results for point in result.curve]
    drawn = any(point.heldout is not None for point in points) if held_out else points
    return " Thin lines: while it trained." if drawn else ""


def _table(group: Group, where: Places) -> Html:
    head = tag(
        "tr", tag("th", ""), *(tag("th", _name(r, where), scope="col") for r in group.results)
    )
    rows = []
    for part in tables.parts(group):
        blank = tag("th", "", colspan=str(len(group.results)))
        rows.append(tag("tr", tag("th", part.heading, scope="row"), blank, class_="part"))
        rows += [_row(row, text=part.heading == "The run") for row in part.rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="wide")


def _row(row: tables.Row, *, text: bool = False) -> Html:
    hint = tag("span", row.hint, class_="hint") if row.hint else None
    return tag("tr", tag("th", row.name, hint, scope="row"), *(_cell(c, text) for c in row.cells))


def _cell(cell: tables.Cell, text: bool) -> Html:
    kinds = {words.VERDICTS["gamed"]: "parted", words.VERDICTS["unconfirmed"]: "unconfirmed"}
    kind = "best" if cell.best else kinds.get(cell.text, "text" if text else None)
    note = tag("small", cell.note) if cell.note else None
    return tag("td", cell.text, note, class_=kind)


def _over_optimisation(group: Group, where: Places) -> list[Html | None]:
    said = words.parted(group)
    if not said:
        return []
    svg = rewards_apart(group, where)
    caption = (
        "Gain since the start, prompt by prompt. Filled: the reward. Hollow: the held-out reward, "
        "of a model that training never saw. Where the hollow mark stays behind or falls, the "
        "policy pleases the first model only. Scores are in each model's own units."
    )
    return [
        tag("h2", "Over-optimisation"),
        tag(
            "div",
            tag("figure", svg, tag("figcaption", caption)) if svg else None,
            tag(
                "div",
                tag("ul", *(tag("li", text) for text in said)),
                tag("p", words.together(group), class_="soft"),
            ),
            class_="plots",
        ),
    ]


def _answers(group: Group, where: Places) -> list[Html | None]:
    """Answers to the same prompts, side by side."""
    columns = _columns(group)
    if not columns:
        return []
    common = sorted(set.intersection(*(set(answers) for _, answers in columns)))
    shown = [_prompt(columns, place, where) for place in common[: SHOWN + MORE]]
    if not shown:
        return []
    more = tag("details", tag("summary", f"{len(shown) - SHOWN} more"), *shown[SHOWN:])
    return [
        tag("h2", "Answers to the same prompts"),
        tag("p", "The first completion that each policy drew.", class_="soft"),
        *shown[:SHOWN],
        more if shown[SHOWN:] else None,
    ]


def _columns(group: Group) -> list[tuple[str, dict[int, Answer]]]:
    found: list[tuple[str, dict[int, Answer]]] = []
    for result in group.measured:
        before, after = result.before, result.run.after
        if not found and group.start is None and before and before.answers:
            found.append(("before training", dict(before.answers)))
        if after and after.answers:
            found.append((result.run.name, dict(after.answers)))
    return found


def _prompt(columns: Sequence[tuple[str, dict[int, Answer]]], place: int, where: Places) -> Html:
    cards = [_card(name, answers[place], where) for name, answers in columns]
    prompt = columns[0][1][place].prompt
    return join((tag("p", _cut(prompt), class_="prompt"), tag("div", *cards, class_="answers")))


def _card(name: str, answer: Answer, where: Places) -> Html:
    score = words.signed(answer.reward)
    if answer.heldout is not None:
        score += f", held out {words.signed(answer.heldout)}"
    text = answer.response.strip()
    body = tag("p", _cut(text)) if text else tag("p", "an empty answer", class_="none")
    return tag(
        "div",
        tag("header", _coloured(name, where), tag("span", score, class_="soft")),
        body,
        class_="answer",
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def _subgroups(group: Group, where: Places) -> list[Html | None]:
    found = tables.subgroups(group)
    if not found:
        return []
    drawn: list[Html | None] = [tag("h2", "By subgroup")]
    for part in found:
        head = tag(
            "tr",
            tag("th", part.field),
            *(tag("th", _coloured(name, where), scope="col") for name in part.runs),
        )
        rows = [_row(row) for row in part.rows[:VALUES]]
        left = len(part.rows) - len(rows)
        table = tag("table", tag("thead", head), tag("tbody", *rows))
        drawn += [
            tag("h3", f"Mean {part.name} by {part.field}"),
            tag("div", table, class_="wide"),
            tag("p", f"{left} more values are left out.", class_="soft") if left else None,
        ]
    return drawn


def _footer() -> Html:
    return tag(
        "footer",
        tag(
            "p",
            "Intervals are 95 %, over prompts: a prompt's completions count as one number, their "
            "mean. Gains are paired, prompt by prompt. A shaded cell is the highest of its row, "
            "not necessarily beyond noise.",
        ),
        tag("p", f"Made by guerdon {version('guerdon')}, command guerdon compare."),
    )
