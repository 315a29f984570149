"""The gateway's Prometheus metrics: every name is declared here and nowhere else.

`docs/operations.md` says how to read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from guerdon.gateway.types import RankedChoices, Strategy
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import InvalidRequest, Overloaded
from guerdon.serving.metrics import SECONDS_BUCKETS, Declared

GAIN_BUCKETS: Sequence[float] = (0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16)
"""Buckets from 0 on: a histogram with negative ones has no sum. A loss counts in the first."""
RATIO_BUCKETS: Sequence[float] = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


class GatewayMetrics:
    """The metrics of one gateway process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        declared = Declared(registry, "guerdon_gateway")
        counter, gauge, histogram = declared.counter, declared.gauge, declared.histogram

        self.requests = counter("requests", "Finished calls.", ["method", "code"])
        """`method` is `http_chat_completions` or `http_completions`; `code` the gRPC status."""
        self.caller_requests = counter("caller_requests", "Finished calls.", ["caller", "code"])
        """`caller` is a name of the tokens file, else `shared` or `anonymous`."""
        self.refused_calls = counter(
            "refused_calls", "Calls refused from their headers alone.", ["method", "code"]
        )
        self.in_flight = gauge("requests_in_flight", "Calls being served.", ["method"])

        self.answers = counter("answers", "Answers by how they were found.", ["strategy", "ranked"])
        """`ranked` is yes, no (rewards were away) or passed (not for ranking, such as tools)."""
        self.candidates = counter("candidates", "Candidates of answered calls.", ["outcome"])
        """`outcome` is scored, unscored, or stopped (before its end, to no use)."""
        self.drawn_tokens = counter("drawn_tokens", "Tokens drawn for answered calls.")
        self.unanswered_tokens = counter(
            "unanswered_tokens", "Tokens drawn for calls that got no answer."
        )
        self.served_tokens = counter("served_tokens", "Tokens of the choices that were sent.")
        self.tokens_per_served_token = histogram(
            "tokens_per_served_token", "Tokens drawn for each that was sent.", RATIO_BUCKETS
        )
        self.reward_gain = histogram(
            "reward_gain",
            "The answer's score less that of candidate 0, where one model scored both whole: "
            "not of answers whose candidate 0 was stopped.",
            GAIN_BUCKETS,
            ["strategy"],
        )
        self.cascades = counter("cascades", "Answers by cascades.", ["decided"])
        """`decided` is clear (by the small model), confirmed or overruled (by the large one)."""
        self.answer_seconds = histogram(
            "answer_seconds", "From a call's arrival to its best answer.", SECONDS_BUCKETS
        )
        self.phase_seconds = histogram(
            "phase_seconds", "Phases of an answer.", SECONDS_BUCKETS, ["phase"]
        )
        """`phase` is draw (to the last candidate's end) or score (what scoring added)."""
        self.spending_refused = counter(
            "spending_refused", "Calls refused for the tokens that a caller may spend.", ["caller"]
        )
        self.unranked_refused = counter(
            "unranked_refused", "Calls refused since no ranking was to be had."
        )
        self._begin()

    def _begin(self) -> None:
        """Series that alerts and panels need before their first event."""
        for strategy in Strategy:
            for ranked in ("yes", "no"):
                self.answers.labels(strategy.value, ranked)
        self.answers.labels("none", "passed")
        for outcome in ("scored", "unscored", "stopped"):
            self.candidates.labels(outcome)
        for decided in ("clear", "confirmed", "overruled"):
            self.cascades.labels(decided)

    @contextmanager
    def spending_refusals(self, caller: Caller) -> Iterator[None]:
        """Count the caller's call where its tokens are refused."""
        try:
            yield
        except (Overloaded, InvalidRequest):
            self.spending_refused.labels(caller.name).inc()
            raise

    def observe(self, found: RankedChoices) -> None:
        """Count an answer."""
        self.answers.labels(found.plan.strategy.value, "yes" if found.ranked else "no").inc()
        scored = sum(each.scored for each in found.candidates)
        self.candidates.labels("scored").inc(scored)
        self.candidates.labels("unscored").inc(len(found.candidates) - scored)
        self.candidates.labels("stopped").inc(len(found.stopped))
        served = sum(each.draft.tokens for each in found.choices)
        self.drawn_tokens.inc(found.tokens)
        self.served_tokens.inc(served)
        if served:
            self.tokens_per_served_token.observe(found.tokens / served)
        if found.gain is not None:
            self.reward_gain.labels(found.plan.strategy.value).observe(found.gain)
        if "close_calls" in found.notes:  # a cascade's
            asked, overruled = found.notes["close_calls"], found.notes.get("overruled")
            decided = "overruled" if overruled else "confirmed" if asked else "clear"
            self.cascades.labels(decided).inc()
        self.answer_seconds.observe(found.seconds.total)
        self.phase_seconds.labels("draw").observe(found.seconds.draw)
        self.phase_seconds.labels("score").observe(found.seconds.score)
