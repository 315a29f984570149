"""The report: one HTML file with everything in it. Opens offline, asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from guerdon.trainer.compare import sentences, tables
from guerdon.trainer.compare.comparison import RunGroup
from guerdon.trainer.compare.plots import (
    GLYPHS,
    Places,
    look,
    places,
    reward_against_kl,
    rewards_apart,
)
from guerdon.trainer.compare.runs import ShownAnswer

GENERATOR = "guerdon compare"
"""The generator named in the page's head: a file that has it may be replaced."""
SHOWN, MORE = 6, 24
"""Prompts whose answers are shown, and those that can be opened beside them."""
VALUES = 60
"""Most values of a field that are shown."""
LONGEST = 4000
"""Characters of an answer."""

_HERE = Path(__file__).parent


def page(groups: Sequence[RunGroup]) -> str:
    """The whole report."""
    where = places(groups)
    runs = sum(len(group.results) for group in groups)
    starts = sum(result.run.is_start for group in groups for result in group.results)
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters["cut"] = _cut
    return environment.get_template("page.html.jinja").render(
        title=f"{runs - starts} run{'' if runs - starts == 1 else 's'} compared",
        generator=GENERATOR,
        version=version("guerdon"),
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        groups=groups,
        where=where,
        look=partial(_look, where),
        plots=partial(_plots, where),
        rewards_apart=lambda group: rewards_apart(group, where),
        answers=_answers,
        signed=sentences.signed,
        kinds={
            sentences.VERDICTS["gamed"]: "parted",
            sentences.VERDICTS["unconfirmed"]: "unconfirmed",
        },
        tables=tables,
        sentences=sentences,
        shown=SHOWN,
        values=VALUES,
    )


def _visible(value: Any) -> Any:
    """Text whose characters that HTML allows in no form (controls, lone surrogates) can be seen."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\n\t\r") or 0xD800 <= ord(c) <= 0xDFFF else c
        for c in value
    )


def _look(where: Places, name: str) -> tuple[int, str]:
    """The number of a run's colour, and its mark as a character."""
    colour, shape = look(where[name])
    return colour, GLYPHS[shape]


def _plots(where: Places, group: RunGroup) -> list[tuple[Markup, str]]:
    """The pictures of rewards against KL, with their captions."""
    found = []
    for measure, said in (("reward", "Reward"), ("heldout_reward", "Held-out reward")):
        svg = reward_against_kl(group, where, measure)
        if svg is not None:
            caption = f"{said} against KL. Bars are 95 % intervals.{_curves(group, measure)}"
            found.append((svg, caption))
    return found


def _curves(group: RunGroup, measure: str) -> str:
    """A sentence on the curves, where there are any."""
    held_out = measure == "heldout_reward"
    points = [point for result in group.results for point in result.curve]
    drawn = any(point.heldout is not None for point in points) if held_out else points
    return " Thin lines: while it trained." if drawn else ""


def _answers(group: RunGroup) -> tuple[list[tuple[str, dict[int, ShownAnswer]]], list[int]]:
    """Each policy's answers by prompt, and the prompts to show: those that all have answered."""
    found: list[tuple[str, dict[int, ShownAnswer]]] = []
    for result in group.measured:
        before, after = result.before, result.run.after
        if not found and group.start is None and before and before.answers:
            found.append(("before training", dict(before.answers)))
        if after and after.answers:
            found.append((result.run.name, dict(after.answers)))
    common = set.intersection(*(set(answers) for _, answers in found)) if found else set()
    return found, sorted(common)[: SHOWN + MORE]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
