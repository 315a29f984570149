"""Which runs may be compared, what each gained, and whether its gain is real. Pure.

Reward rises with the square root of KL and less than that (Gao et al. 2023, arXiv:2210.10760), so
reward for each nat favours whoever moved least. Runs are compared at the smallest of their KLs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from guerdon.trainer.common.measuring.measures import t_quantile
from guerdon.trainer.common.measuring.monitors import LONGER, overoptimised
from guerdon.trainer.common.measuring.statistics import Estimate, paired
from guerdon.trainer.compare.runs import Point, Run, RunMeasures, Terms
from guerdon.trainer.evaluate.policy.winning import reward_per_kl

Verdict = Literal["gamed", "unconfirmed", "confirmed", "no gain"]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Overoptimisation:
    """What became of the reward and of the held-out reward since the start."""

    proxy: Estimate
    """The proxy's gain, with the interval of the level."""
    heldout: Estimate
    level: float
    """Confidence level of each interval, so that the verdicts on all runs hold at once at 95 %."""
    verdict: Verdict
    """`gamed`: the reward rose and the held-out reward fell, both beyond noise. `unconfirmed`:
    the held-out reward did not rise beyond noise. `confirmed`: both rose."""


@dataclass(frozen=True, slots=True)
class Result:
    """A run beside the others."""

    run: Run
    before: RunMeasures | None = None
    """The start, on the same terms."""
    gains: Mapping[str, Estimate] = field(default_factory=dict)
    """Gains of `reward` and `heldout_reward` since then, prompt by prompt."""
    per_kl: float | None = None
    """Gain of reward in each nat of KL."""
    overoptimisation: Overoptimisation | None = None
    curve: tuple[Point, ...] = ()
    """While it trained, where that was measured on the terms of the group."""


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs whose numbers may stand on the same axes."""

    terms: Terms | None
    """None where nothing was measured."""
    results: tuple[Result, ...]
    start: Run | None = None
    notes: tuple[str, ...] = ()
    """What a reader should know of these runs."""

    @property
    def measured(self) -> list[Result]:
        """The runs that were measured, the start included."""
        return [result for result in self.results if result.run.after is not None]

    @property
    def trained(self) -> list[Result]:
        """The runs that were measured, without the start."""
        return [result for result in self.measured if not result.run.is_start]


def compare(runs: Sequence[Run]) -> list[RunGroup]:
    """The runs in groups whose numbers can be compared, the largest first.

    Runs that were not measured are in the first group: there is nothing to confuse.
    """
    parts = sorted(_alike(runs), key=len, reverse=True)
    unmeasured = [run for run in runs if run.terms is None]
    if not parts:
        return [RunGroup(None, tuple(Result(run) for run in unmeasured))]
    parts[0] = [run for run in runs if run in parts[0] or run in unmeasured]
    return [_group(part) for part in parts]


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same terms. One without a held-out reward goes with any that has one."""
    by_key: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        if run.terms is not None:
            by_key.setdefault(run.terms.key, []).append(run)
    found = []
    for alike in by_key.values():
        by_heldout: dict[tuple[str, str], list[Run]] = {}
        without = []
        for run in alike:
            if run.terms and run.terms.heldout:
                by_heldout.setdefault(run.terms.heldout_key, []).append(run)
            else:
                without.append(run)
        first, *others = by_heldout.values() or [[]]
        found += [first + without, *others]
    return found


def _group(runs: Sequence[Run]) -> RunGroup:
    every = [run.terms for run in runs if run.terms is not None]
    terms = next((of for of in every if of.heldout), every[0])
    start = next((run for run in runs if run.is_start), None)
    results = [_result(run, start, terms) for run in runs]
    tests = sum(_both(result.gains) for result in results)
    results = [
        dataclasses.replace(result, overoptimisation=find_overoptimisation(result.gains, tests))
        if _both(result.gains)
        else result
        for result in results
    ]
    results.sort(key=lambda result: not result.run.is_start)  # the start first
    return RunGroup(terms, tuple(results), start, tuple(_notes(results, start, terms)))


def _result(run: Run, start: Run | None, terms: Terms) -> Result:
    if run.after is None or run.is_start:
        return Result(run)
    if start is None:
        before, gains = run.before, run.difference
    else:
        before, gains = start.after, _gains(start.after, run.after)
    kl, per_kl = run.after.estimates.get("kl"), None
    if kl is not None and before is not None:
        per_kl, _ = reward_per_kl(run.after.reward, before.reward, kl, of_reference=True)
    return Result(run, before, gains, per_kl, curve=_curve(run, terms))


def _curve(run: Run, terms: Terms) -> tuple[Point, ...]:
    """What may be drawn of the run's curve beside evaluations on these terms."""
    own = run.curve_terms
    if own is None or _as_known(own, terms).key != terms.key:
        return ()
    if own.heldout == terms.heldout:
        return run.curve
    return tuple(dataclasses.replace(point, heldout=None) for point in run.curve)


def _gains(before: RunMeasures | None, after: RunMeasures) -> dict[str, Estimate]:
    found = {}
    for name in ("reward", "heldout_reward"):
        was, now = (m.prompts.get(name, {}) if m else {} for m in (before, after))
        if was.keys() & now.keys():
            found[name] = paired(was, now)
    return found


def _as_known(own: Terms, terms: Terms) -> Terms:
    """What a run measured itself on, in the words of evaluations: what it can't tell is theirs."""
    return dataclasses.replace(
        own,
        own=terms.own,
        revisions=terms.revisions,
        prompts=terms.prompts if own.source == terms.source else own.prompts,
        reference_sha256=terms.reference_sha256 if own.reference == terms.reference else "",
    )


def _both(gains: Mapping[str, Estimate]) -> bool:
    return "reward" in gains and "heldout_reward" in gains


def find_overoptimisation(gains: Mapping[str, Estimate], tests: int = 1) -> Overoptimisation:
    """Whether the held-out reward follows the reward.

    Args:
        gains: of `reward` and `heldout_reward`.
        tests: runs that are judged at once; the level is divided among them (Bonferroni).
    """
    level = 1 - (1 - LEVEL) / max(1, tests)
    proxy, heldout = (at_level(gains[name], level) for name in ("reward", "heldout_reward"))
    if overoptimised(proxy, heldout):
        verdict: Verdict = "gamed"
    elif not proxy.rose:
        verdict = "no gain"
    else:
        verdict = "confirmed" if heldout.rose else "unconfirmed"
    return Overoptimisation(proxy, heldout, level, verdict)


def at_level(found: Estimate, level: float) -> Estimate:
    """An estimate's mean with the interval of another level of confidence."""
    if found.se is None or found.n < 2:
        return found
    half = t_quantile(0.5 + level / 2, found.n - 1) * found.se
    return dataclasses.replace(found, low=found.mean - half, high=found.mean + half)


def differing(first: Terms, other: Terms) -> list[str]:
    """Differences of the terms of two measurements, in words."""
    found = []
    if first.own != other.own:
        by = "the run itself" if other.own else "guerdon eval policy"
        found.append(f"measured by {by}, on samples of its own")
        other = _as_known(other, first)
    found += _other_prompts(first, other)
    if first.rewards != other.rewards:
        found.append(f"other rewards ({reward_words(other)})")
    elif first.revisions != other.revisions and not other.own:
        found.append("other revisions of the reward models")
    if first.heldout_key != other.heldout_key and first.heldout and other.heldout:
        found.append(f"another held-out reward ({other.heldout})")
    if (first.reference_sha256 or first.reference) != (other.reference_sha256 or other.reference):
        found.append(f"KL against another policy ({other.reference})")
    if first.max_tokens != other.max_tokens:
        found.append(f"{other.max_tokens} tokens at most, not {first.max_tokens}")
    if first.temperature != other.temperature:
        found.append(f"temperature {other.temperature:g}, not {first.temperature:g}")
    return found


def _other_prompts(first: Terms, other: Terms) -> list[str]:
    more = ""
    if first.columns != other.columns:
        more += f", columns {' and '.join(other.columns)}"
    if first.split != other.split:
        more += f", split {other.split}"
    if not more and (first.prompts, first.count) == (other.prompts, other.count):
        return []
    return [f"other prompts ({other.count} of {other.source}{more})"]


def reward_words(terms: Terms) -> str:
    """The reward, as a sum."""
    parts = [name if weight == 1 else f"{weight:g}·{name}" for weight, name in terms.rewards]
    return " + ".join(parts) or "none"


def _notes(results: Sequence[Result], start: Run | None, terms: Terms) -> list[str]:
    found = []
    trained = [result.run for result in results if not result.run.is_start]
    absent = [run.name for run in trained if run.after is None]
    if absent:
        found.append(
            f"Not measured on prompts: {', '.join(absent)}. The evaluation of RUN/final by guerdon "
            "eval policy belongs into RUN/evaluation."
        )
    for run in trained:
        own = _as_known(run.curve_terms, terms) if run.curve_terms else terms
        if run.curve and own.key != terms.key:
            found.append(
                f"The evaluations that {run.name} made while it trained are not drawn: "
                f"{'; '.join(differing(terms, own))}."
            )
    bases = {run.base for run in trained if run.base}
    if len(bases) > 1:
        found.append(f"They began from different policies: {', '.join(sorted(bases))}.")
    counts = {
        run.after.samples_per_prompt
        for run in [*trained, *([start] if start else [])]
        if run.after and run.after.samples_per_prompt
    }
    if len(counts) > 1:
        found.append(
            f"They drew different numbers of completions a prompt ({_listed(counts)}): distinct-n "
            "falls as there is more text, so it can't be compared."
        )
    if start is None and not terms.own:
        found.append(
            "The policy that they began from was not measured: without its evaluation among the "
            "folders there are no gains, and no word on over-optimisation."
        )
    return found + [text for result in results for text in _of_one(result)]


def _of_one(result: Result) -> list[str]:
    """What a run's own monitors said, and how it changed in length."""
    run, before = result.run, result.before
    found = [f"{run.name}, while it trained: {text}" for text in run.warnings]
    if run.after is not None:
        found += [f"{run.name}: {text}" for text in run.after.warnings]
    own = run.terms is not None and run.terms.own  # its own monitors have looked
    if own or not before or not run.after:
        return found
    if {"length"} <= before.estimates.keys() & run.after.estimates.keys():
        was, now = before.estimates["length"], run.after.estimates["length"]
        if now.mean > LONGER * was.mean and _apart(was, now):
            found.append(
                f"{run.name}: completions grew from {was.mean:.0f} to {now.mean:.0f} tokens."
            )
    return found


def _apart(first: Estimate, second: Estimate) -> bool:
    return first.high is not None and second.low is not None and first.high < second.low


def _listed(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def smallest_kl(results: Sequence[Result]) -> float:
    """The KL, in nats, that every one of the runs reached."""
    return min(_kl(result).mean for result in results)


def gain_at(result: Result, kl: float) -> Estimate:
    """What a run's reward had gained when it was so far from the start.

    Linear in √KL between the run's evaluations; where it has none on these terms, between the start
    and its end. The standard error is that of the gain at the end, with that of KL.

    Args:
        result: with a gain of reward and a KL above 0.
        kl: nats, at most the run's own.
    """
    assert result.before is not None
    end, own = result.gains["reward"], _kl(result)
    start = result.before.reward.mean
    path = [(0.0, 0.0)]
    path += [(math.sqrt(max(0.0, p.kl)), p.reward - start) for p in result.curve]
    path.append((math.sqrt(own.mean), end.mean))
    gain = _first_reached(path, math.sqrt(kl))
    distance_error = gain / 2 * (own.se or 0.0) / own.mean
    return _estimate(gain, math.hypot(end.se or 0.0, distance_error), end.n)


def ahead(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two gains; their errors are taken as independent."""
    error = math.hypot(first.se or 0.0, second.se or 0.0)
    return _estimate(first.mean - second.mean, error, min(first.n, second.n))


def _first_reached(path: Sequence[tuple[float, float]], distance: float) -> float:
    """The gain where a path of (√KL, gain) first comes as far as a distance."""
    for (before, low), (after, high) in pairwise(path):
        if after >= distance:
            part = (distance - before) / (after - before) if after > before else 1.0
            return low + part * (high - low)
    return path[-1][1]


def _estimate(mean: float, se: float, n: int) -> Estimate:
    return at_level(Estimate(mean, se, None, None, n), LEVEL)


def _kl(result: Result) -> Estimate:
    assert result.run.after is not None
    return result.run.after.estimates["kl"]
