"""What a comparison says, in sentences and in numbers as they are written. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from guerdon.trainer.common import report
from guerdon.trainer.common.measuring.statistics import Estimate, paired
from guerdon.trainer.compare.comparison import (
    Overoptimisation,
    Result,
    RunGroup,
    ahead,
    differing,
    gain_at,
    reward_words,
    smallest_kl,
)

NONE = "–"


def signed(value: float) -> str:
    """A number with its sign, and three figures or two places."""
    return f"{value:+.0f}" if abs(value) >= 1000 else f"{value:+.2f}".replace("-", "−")


def plain(value: float, places: int = 2) -> str:
    """A number without a sign, where it has none."""
    return f"{value:.{places}f}".replace("-", "−")


def short(path: str) -> str:
    """The end of a long path."""
    parts = path.split("/")
    return path if len(parts) < 4 else "/".join(("…", *parts[-2:]))


def risen(found: Estimate) -> str:
    """A rise beyond its noise, in words."""
    return report.with_interval(found.as_dict(), plain)


def fallen(found: Estimate) -> str:
    """A fall beyond its noise, in words."""
    low = None if found.high is None else -found.high
    return risen(
        replace(found, mean=-found.mean, low=low, high=None if found.low is None else -found.low)
    )


def with_interval(found: Estimate) -> str:
    """A mean with its interval."""
    return report.with_interval(found.as_dict(), signed)


def headlines(group: RunGroup) -> list[str]:
    """Which run did best, by which reward, and whether the next can be told from it."""
    found = []
    for name, what in (("reward", "reward"), ("heldout_reward", "held-out reward")):
        ranked = sorted(
            (result for result in group.trained if name in _estimates(result)),
            key=lambda result: -_estimates(result)[name].mean,
        )
        if len(ranked) > 1:
            found.append(_best(ranked[0], ranked[1], name, what))
    rising = [
        result
        for result in group.trained
        if result.per_kl is not None and "reward" in result.gains and result.gains["reward"].rose
    ]
    if len(rising) > 1:
        found.append(_most_at_equal_kl(rising))
    return found


def _most_at_equal_kl(results: Sequence[Result]) -> str:
    """Which run had gained most when it was as far from the start as the others came."""
    kl = smallest_kl(results)
    gains = {result.run.name: gain_at(result, kl) for result in results}
    best, rival = sorted(gains, key=lambda name: -gains[name].mean)[:2]
    text = (
        f"At {plain(kl)} nats of KL, which all of them reached, {best} had gained the most reward, "
        f"{with_interval(gains[best])}; the next is {rival}, {with_interval(gains[rival])}"
    )
    difference = ahead(gains[best], gains[rival])
    if difference.rose:
        return f"{text}, which is less by {risen(difference)}."
    return f"{text}, and the two can't be told apart: {with_interval(difference)}."


def _estimates(result: Result) -> dict[str, Estimate]:
    return dict(result.run.after.estimates) if result.run.after else {}


def _best(first: Result, second: Result, name: str, what: str) -> str:
    after, next_ = first.run.after, second.run.after
    assert after
    assert next_
    kl = after.estimates.get("kl")
    text = f"{first.run.name} has the highest {what}, {with_interval(after.estimates[name])}"
    text += f", at {plain(kl.mean)} nats of KL" if kl else ""
    rival = second.run.name
    mine, theirs = after.prompts.get(name, {}), next_.prompts.get(name, {})
    if mine.keys() & theirs.keys():
        ahead = paired(theirs, mine)
        if ahead.rose:
            return f"{text}; prompt by prompt it beats the next, {rival}, by {risen(ahead)}."
        told = with_interval(ahead)
        return f"{text}; it can't be told from the next, {rival}: {told} prompt by prompt."
    return f"{text}; the next is {rival}, {with_interval(next_.estimates[name])}."


VERDICTS = {
    "gamed": "parted",
    "unconfirmed": "not confirmed",
    "confirmed": "confirmed",
    "no gain": "no gain",
}
"""What a table says of a verdict."""


def overoptimisation_sentence(name: str, found: Overoptimisation) -> str:
    """Whether the held-out reward followed, in a sentence."""
    rose = f"{name}: the reward rose by {risen(found.proxy)}"
    changed = with_interval(found.heldout)
    if found.verdict == "gamed":
        return (
            f"{rose} while the held-out reward fell by {fallen(found.heldout)}, both beyond their "
            "noise: the policy may be gaming its reward."
        )
    if found.verdict == "unconfirmed":
        return f"{rose}, which the held-out reward does not confirm: it changed by {changed}."
    if found.verdict == "confirmed":
        return f"{rose}, and the held-out reward by {risen(found.heldout)}."
    return (
        f"{name}: the reward did not rise beyond its noise; it changed by "
        f"{with_interval(found.proxy)}, the held-out reward by {changed}."
    )


def terms(group: RunGroup) -> str:
    """The terms on which the runs of a group were measured."""
    found = group.terms
    if found is None:
        return "Nothing was measured on prompts."
    heldout = f", held-out reward {found.heldout}" if found.heldout else ""
    by = "the runs themselves" if found.own else "guerdon eval policy"
    return (
        f"Measured by {by} on {found.count} prompts of {short(found.source)}: reward "
        f"{reward_words(found)}{heldout}; at most {found.max_tokens} tokens at temperature "
        f"{found.temperature:g}; KL against {short(found.reference)}."
    )


def not_comparable(groups: Sequence[RunGroup]) -> list[str]:
    """Why the numbers of each group but the first stand apart."""
    first, *others = groups
    found = []
    for group in others:
        assert first.terms
        assert group.terms
        names = ", ".join(result.run.name for result in group.results)
        verb = "is" if len(group.results) == 1 else "are"
        found.append(
            f"{names} {verb} not comparable with the others: "
            f"{'; '.join(differing(first.terms, group.terms))}."
        )
    return found


def overoptimisation_sentences(group: RunGroup) -> list[str]:
    """A sentence for every run of which both rewards are known."""
    return [
        overoptimisation_sentence(result.run.name, found)
        for result in group.trained
        if (found := result.overoptimisation)
    ]


def together(group: RunGroup) -> str:
    """Which intervals the sentences on over-optimisation have; empty for a single run."""
    levels = [result.overoptimisation.level for result in group.trained if result.overoptimisation]
    if len(levels) < 2:
        return ""
    return (
        f"Intervals of over-optimisation are {100 * levels[0]:.1f} % ones, so that what they say "
        f"of all {len(levels)} runs holds at once at 95 %."
    )
