"""The pictures of a comparison, as SVG whose colours are the page's: light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from guerdon.trainer.common.measuring.plots import new_figure
from guerdon.trainer.common.measuring.statistics import Estimate
from guerdon.trainer.compare.comparison import Result, RunGroup
from guerdon.trainer.compare.runs import Point

INK, FAINT, PAPER = "#0000f1", "#0000f2", "#0000f3"
SERIES = tuple(f"#0000a{i}" for i in range(10))
COLOURS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES)},
}
"""Stand-ins that matplotlib takes for colours, and what the page puts in their place."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "h")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "★", "⬟", "⬢")
"""The markers' shapes as characters."""
LINE = 11.0
"""Points between two labels that would be one over the other."""
NAME = 18
"""Characters of a label."""

Places = Mapping[str, int]
"""Each run's name to its number, which gives colour and shape."""


def places(groups: Sequence[RunGroup]) -> dict[str, int]:
    """The trained runs, numbered; the start has the ink."""
    trained = [result.run.name for group in groups for result in group.trained]
    return {name: i for i, name in enumerate(trained)}


def look(place: int) -> tuple[int, int]:
    """Colour and shape of a number: a hundred pairs before one comes again."""
    return place % len(SERIES), (place + place // len(SERIES)) % len(MARKERS)


def reward_against_kl(group: RunGroup, where: Places, measure: str = "reward") -> Markup | None:
    """A point for each run with its 95 % intervals, and its curve while it trained.

    None where fewer than two policies have both the measure and KL.
    """
    drawn = [r for r in group.measured if _has(r, measure, "kl")]
    if len(drawn) < 2 and not any(result.curve for result in drawn):
        return None
    figure, ax = _axes()
    labels = []
    for result in drawn:
        assert result.run.after
        kl, reward = (result.run.after.estimates[name] for name in ("kl", measure))
        colour, marker = _look(result, where)
        if result.curve:
            _curve(ax, _points(result.curve, measure), colour)
        _point(ax, kl, reward, colour, marker)
        labels.append((kl.mean, reward.mean, result.run.name, colour))
    start = next((r.run.after for r in drawn if r.run.is_start), None)
    if start:
        ax.axhline(start.estimates[measure].mean, color=FAINT, linestyle=":", linewidth=1)
    what = "held-out reward" if measure == "heldout_reward" else "reward"
    ax.set(xlabel="KL from the reference, nats a completion", ylabel=f"mean {what}")
    _label(figure, ax, labels)
    return _svg(figure, f"kl-{measure}", f"{what} against KL, a point for each run")


def rewards_apart(group: RunGroup, where: Places) -> Markup | None:
    """Gain of the reward (filled) and of the held-out reward (hollow) against KL, by run.

    None where no run has both.
    """
    drawn = [r for r in group.trained if r.overoptimisation and _has(r, "kl")]
    if not drawn:
        return None
    figure, ax = _axes()
    ax.axhline(0, color=FAINT, linestyle=":", linewidth=1)
    labels = []
    for result in drawn:
        assert result.overoptimisation
        assert result.run.after
        kl, found = result.run.after.estimates["kl"], result.overoptimisation
        colour, marker = _look(result, where)
        if result.curve:
            for of, style in ((_reward, "-"), (_heldout, "--")):
                _curve(ax, _since_first(result.curve, of), colour, style)
        ax.plot(
            [kl.mean, kl.mean],
            [found.proxy.mean, found.heldout.mean],
            color=colour,
            linewidth=1,
            alpha=0.5,
        )
        _point(ax, kl, found.proxy, colour, marker, across=False)
        _point(ax, kl, found.heldout, colour, marker, across=False, hollow=True)
        labels.append((kl.mean, found.proxy.mean, result.run.name, colour))
    ax.set(xlabel="KL from the reference, nats a completion", ylabel="gain since the start")
    _label(figure, ax, labels)
    return _svg(figure, "apart", "gains of the reward and of the held-out reward against KL")


def _axes() -> tuple[Any, Any]:
    figure, ax = new_figure()
    ax.tick_params(colors=INK, labelsize=9)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.grid(color=FAINT, alpha=0.35)
    return figure, ax


def _has(result: Result, *measures: str) -> bool:
    return result.run.after is not None and all(m in result.run.after.estimates for m in measures)


def _look(result: Result, where: Places) -> tuple[str, str]:
    place = where.get(result.run.name)
    if place is None:
        return INK, "o"
    colour, shape = look(place)
    return SERIES[colour], MARKERS[shape]


def _point(
    ax: Any,
    kl: Estimate,
    value: Estimate,
    colour: str,
    marker: str,
    *,
    across: bool = True,
    hollow: bool = False,
) -> None:
    ax.errorbar(
        [kl.mean],
        [value.mean],
        yerr=_half(value),
        xerr=_half(kl) if across else None,
        fmt=marker,
        color=colour,
        markerfacecolor=PAPER if hollow else colour,
        markersize=7,
        elinewidth=1.1,
        capsize=2.5,
        zorder=3,
    )


def _half(found: Estimate) -> Any:
    if found.low is None or found.high is None:
        return None
    return [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]


def _curve(ax: Any, points: Sequence[tuple[float, float]], colour: str, style: str = "-") -> None:
    if len(points) > 1:
        kl, value = zip(*points, strict=True)
        ax.plot(
            kl,
            value,
            color=colour,
            linewidth=1.3,
            alpha=0.6,
            marker=".",
            markersize=4,
            linestyle=style,
            zorder=2,
        )


def _reward(point: Point) -> float | None:
    return point.reward


def _heldout(point: Point) -> float | None:
    return point.heldout


def _points(curve: Sequence[Point], measure: str) -> list[tuple[float, float]]:
    of = _heldout if measure == "heldout_reward" else _reward
    return [(point.kl, value) for point in curve if (value := of(point)) is not None]


def _since_first(
    curve: Sequence[Point], of: Callable[[Point], float | None]
) -> list[tuple[float, float]]:
    found = [(point.kl, value) for point in curve if (value := of(point)) is not None]
    return [(kl, value - found[0][1]) for kl, value in found]


def _label(figure: Any, ax: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside their points, none over another."""
    left, right = ax.get_xlim()
    ax.set_xlim(left, right + 0.22 * (right - left))  # room for the rightmost name
    figure.draw_without_rendering()  # the layout is settled only now
    to_points = 72.0 / figure.dpi
    taken: list[tuple[float, float]] = []
    for kl, value, name, colour in sorted(labels, key=lambda label: label[1]):
        x, y = ax.transData.transform((kl, value)) * to_points
        place = y + 7.0
        while any(abs(place - other) < LINE and abs(x - at) < 90 for at, other in taken):
            place += LINE / 2
        taken.append((x, place))
        short = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        ax.annotate(
            short,
            (kl, value),
            xytext=(7, place - y - 3),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            parse_math=False,
            zorder=4,
            gid=f"name{len(taken)}",
        )


def _svg(figure: Any, key: str, said: str) -> Markup:
    """The figure as an element of a page: no header, ids of its own, colours of the page."""
    import matplotlib as mpl

    file = io.StringIO()
    figure.patch.set_alpha(0)
    for ax in figure.axes:
        ax.patch.set_alpha(0)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style type=.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    text = re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{said}"', 1)
    return Markup(text)  # noqa: S704 - by matplotlib, which escapes names
