"""The reward service's Prometheus metrics: every name is declared here and nowhere else.

Labels: `model` and `revision` (12 characters) name what was asked for, `class` is
`online` or `batch`. `docs/operations.md` says how to read them.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from guerdon.serving.metrics import Declared

LATENCY_BUCKETS: Sequence[float] = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0,
)  # fmt: skip
"""Seconds, from half a millisecond to a minute."""

TOKEN_BUCKETS: Sequence[float] = tuple(float(2**k) for k in range(4, 18))
SEQUENCE_BUCKETS: Sequence[float] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SCORE_BUCKETS: Sequence[float] = (
    -50, -25, -15, -10, -7.5, -5, -4, -3, -2.5, -2, -1.5, -1, -0.75, -0.5, -0.25, 0,
    0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 25, 50,
)  # fmt: skip

JUDGE_OUTCOMES = (
    "ok",
    "no_verdict",
    "invalid",
    "timeout",
    "away",
    "limited",
    "refused",
    "failed",
    "cancelled",
)
"""How a request to a judge's endpoint ends: `invalid` is a reply that is cut or no completion,
`away` no connection or HTTP 5xx, `limited` HTTP 429, `refused` any other status, `failed` a fault
of ours."""


class RewardMetrics:
    """The metrics of one server process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        declared = Declared(registry, "guerdon")
        counter, gauge, histogram = declared.counter, declared.gauge, declared.histogram
        model = ["model", "revision"]
        classed = ["model", "revision", "class"]

        self.requests = counter("requests", "Finished calls.", ["method", "model", "class", "code"])
        """`method` is the RPC's name (ScoreStream counts each item) or `http_score`, `http_rank`,
        `http_models`; `code` is the gRPC status name; unknown models are labelled `unknown`."""
        self.refused_calls = counter(
            "refused_calls", "Calls refused from their headers alone.", ["method", "code"]
        )
        """`code` is UNAUTHENTICATED, PERMISSION_DENIED, or RESOURCE_EXHAUSTED (`max_calls`)."""
        self.in_flight = gauge("requests_in_flight", "Calls being served.", ["method"])

        self.caller_requests = counter(
            "caller_requests", "Finished calls by caller.", ["caller", "class", "code"]
        )
        """`caller` is a name of the tokens file, else `shared`, `admin` or `anonymous`."""
        self.caller_in_flight = gauge(
            "caller_requests_in_flight", "Calls being served, by caller.", ["caller"]
        )
        self.caller_tokens = counter(
            "caller_tokens", "Tokens scored by caller, shared prompts once.", ["caller", "class"]
        )

        def seconds(name: str, what: str) -> Histogram:
            return histogram(f"{name}_seconds", what, LATENCY_BUCKETS, classed)

        self.queue_seconds = seconds("queue", "Item waiting for a batch.")
        self.tokenize_seconds = seconds("tokenize", "Item being tokenised.")
        self.compute_seconds = seconds("compute", "Item in the engine.")
        self.request_seconds = seconds("request", "Call from arrival to reply.")

        self.queue_tokens = gauge(
            "queue_tokens", "Tokens accepted and not yet computed.", ["class"]
        )
        self.queue_items = gauge("queue_items", "Items accepted and not yet computed.", ["class"])
        self.queue_limit_tokens = gauge("queue_limit_tokens", "Most tokens that may be queued.")

        self.batch_tokens = histogram(
            "batch_tokens", "Tokens computed in a batch, padding included.", TOKEN_BUCKETS, model
        )
        self.batch_sequences = histogram(
            "batch_sequences", "Responses in a batch.", SEQUENCE_BUCKETS, model
        )
        self.preempting_batches = counter(
            "preempting_batches", "Batches computed between the layers of another.", model
        )
        self.computed_tokens = counter(
            "computed_tokens", "Tokens computed, padding included.", model
        )
        self.padding_tokens = counter(
            "padding_tokens", "Tokens computed that were only padding.", model
        )
        self.reused_tokens = counter(
            "reused_prompt_tokens", "Tokens of sequences that were not computed for them.", model
        )
        """Another sequence of the batch begins with them, or an earlier one did."""
        self.cached_tokens = counter(
            "cached_tokens", "Tokens taken out of the prefix cache, once for each batch.", model
        )
        self.sequences = counter("sequences", "Responses scored.", classed)
        self.truncations = counter("truncations", "Responses whose prompt was cut.", model)

        self.shed = counter("shed", "Items refused for overload.", ["model", "class"])
        self.dropped = counter(
            "dropped",
            "Accepted items that nobody waited for any more.",
            ["model", "class", "reason", "stage"],
        )
        """`reason` is expired or cancelled; `stage` is `queued` (cost no forward pass) or
        `computing` (the answer came too late)."""

        self.judge_requests = counter(
            "judge_requests", "Requests to judges' endpoints.", [*model, "outcome"]
        )
        """`outcome` is one of `JUDGE_OUTCOMES`."""
        self.judge_seconds = histogram(
            "judge_request_seconds", "Requests to judges' endpoints.", LATENCY_BUCKETS, model
        )
        self.judge_tokens = counter(
            "judge_tokens", "Tokens of judges' questions and replies, as endpoints count.", model
        )
        self.judge_cached = counter("judge_cached", "Verdicts that were known already.", model)

        self.scores = histogram("score", "Raw scores given.", SCORE_BUCKETS, model)
        self.nonfinite_scores = counter(
            "nonfinite_scores", "Scores that were NaN or infinite, never served.", model
        )
        self.batch_failures = counter(
            "batch_failures", "Batches that failed.", ["model", "revision", "reason"]
        )
        """`reason` is exception, nonfinite or out_of_memory."""

        self.model_info = gauge(
            "model_info",
            "1 for each loaded revision.",
            ["model", "revision", "kind", "mode", "dtype", "device", "current"],
        )
        """`mode` is packed or padded."""
        self.model_packed = gauge(
            "model_packed", "1 if the model runs packed, 0 if padded; no judge.", model
        )
        self.model_loads = counter("model_loads", "Attempts to load a model.", ["model", "outcome"])
        """`outcome` is loaded, refused, failed or cancelled."""
        self.model_load_seconds = histogram(
            "model_load_seconds",
            "Loading a model, probes included.",
            (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600),
            ["model"],
        )

        self.engine_busy_seconds = counter(
            "engine_busy_seconds",
            "Seconds an engine spent computing; its rate is the busy fraction.",
            ["engine"],
        )
        self.engine_up = gauge("engine_up", "1 while the engine can compute.", ["engine"])
        self.engine_restarts = counter(
            "engine_restarts",
            "Times an engine's process was started anew after it had ended.",
            ["engine"],
        )

    def of_judge(self) -> tuple[Counter | Histogram, ...]:
        """The metrics that judges alone have."""
        return (self.judge_requests, self.judge_seconds, self.judge_tokens, self.judge_cached)

    def of_revision(self) -> tuple[Counter | Histogram, ...]:
        """The metrics labelled by model and revision alone, and not described by the registry."""
        return (
            self.batch_tokens,
            self.batch_sequences,
            self.preempting_batches,
            self.computed_tokens,
            self.padding_tokens,
            self.reused_tokens,
            self.cached_tokens,
            self.truncations,
            self.scores,
            self.nonfinite_scores,
        )
