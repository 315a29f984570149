"""The reward service's Prometheus metrics: every name is declared here and nowhere else.

Labels: `model` and `revision` (12 characters) name what was asked for, `class` is
`online` or `batch`. `docs/operations.md` says how to read them.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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


class RewardMetrics:
    """The metrics of one server process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ["model", "revision"]
        classed = ["model", "revision", "class"]

        self.requests = Counter(
            "guerdon_requests",
            "Finished calls.",
            ["method", "model", "class", "code"],
            registry=registry,
        )
        """`method` is the RPC's name (ScoreStream counts each item) or `http_score`, `http_rank`,
        `http_models`; `code` is the gRPC status name; unknown models are labelled `unknown`."""
        self.refused_calls = Counter(
            "guerdon_refused_calls",
            "Calls refused from their headers alone.",
            ["method", "code"],
            registry=registry,
        )
        """`code` is UNAUTHENTICATED, PERMISSION_DENIED, or RESOURCE_EXHAUSTED (`max_calls`)."""
        self.in_flight = Gauge(
            "guerdon_requests_in_flight", "Calls being served.", ["method"], registry=registry
        )

        self.caller_requests = Counter(
            "guerdon_caller_requests",
            "Finished calls by caller.",
            ["caller", "class", "code"],
            registry=registry,
        )
        """`caller` is a name of the tokens file, else `shared`, `admin` or `anonymous`."""
        self.caller_in_flight = Gauge(
            "guerdon_caller_requests_in_flight",
            "Calls being served, by caller.",
            ["caller"],
            registry=registry,
        )
        self.caller_tokens = Counter(
            "guerdon_caller_tokens",
            "Tokens scored by caller, shared prompts once.",
            ["caller", "class"],
            registry=registry,
        )

        def seconds(name: str, what: str) -> Histogram:
            return Histogram(name, what, classed, buckets=LATENCY_BUCKETS, registry=registry)

        self.queue_seconds = seconds("guerdon_queue_seconds", "Item waiting for a batch.")
        self.tokenize_seconds = seconds("guerdon_tokenize_seconds", "Item being tokenised.")
        self.compute_seconds = seconds("guerdon_compute_seconds", "Item in the engine.")
        self.request_seconds = seconds("guerdon_request_seconds", "Call from arrival to reply.")

        self.queue_tokens = Gauge(
            "guerdon_queue_tokens",
            "Tokens accepted and not yet computed.",
            ["class"],
            registry=registry,
        )
        self.queue_items = Gauge(
            "guerdon_queue_items",
            "Items accepted and not yet computed.",
            ["class"],
            registry=registry,
        )
        self.queue_limit_tokens = Gauge(
            "guerdon_queue_limit_tokens", "Most tokens that may be queued.", registry=registry
        )

        self.batch_tokens = Histogram(
            "guerdon_batch_tokens",
            "Tokens computed in a batch, padding included.",
            model,
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.batch_sequences = Histogram(
            "guerdon_batch_sequences",
            "Responses in a batch.",
            model,
            buckets=SEQUENCE_BUCKETS,
            registry=registry,
        )
        self.computed_tokens = Counter(
            "guerdon_computed_tokens",
            "Tokens computed, padding included.",
            model,
            registry=registry,
        )
        self.padding_tokens = Counter(
            "guerdon_padding_tokens",
            "Tokens computed that were only padding.",
            model,
            registry=registry,
        )
        self.reused_tokens = Counter(
            "guerdon_reused_prompt_tokens",
            "Prompt tokens served from a shared prefix.",
            model,
            registry=registry,
        )
        self.sequences = Counter(
            "guerdon_sequences", "Responses scored.", classed, registry=registry
        )
        self.truncations = Counter(
            "guerdon_truncations", "Responses whose prompt was cut.", model, registry=registry
        )

        self.shed = Counter(
            "guerdon_shed", "Items refused for overload.", ["model", "class"], registry=registry
        )
        self.dropped = Counter(
            "guerdon_dropped",
            "Accepted items that nobody waited for any more.",
            ["model", "class", "reason", "stage"],
            registry=registry,
        )
        """`reason` is expired or cancelled; `stage` is `queued` (cost no forward pass) or
        `computing` (the answer came too late)."""

        self.scores = Histogram(
            "guerdon_score", "Raw scores given.", model, buckets=SCORE_BUCKETS, registry=registry
        )
        self.nonfinite_scores = Counter(
            "guerdon_nonfinite_scores",
            "Scores that were NaN or infinite, never served.",
            model,
            registry=registry,
        )
        self.batch_failures = Counter(
            "guerdon_batch_failures",
            "Batches that failed.",
            ["model", "revision", "reason"],
            registry=registry,
        )
        """`reason` is exception, nonfinite or out_of_memory."""

        self.model_info = Gauge(
            "guerdon_model_info",
            "1 for each loaded revision.",
            ["model", "revision", "kind", "mode", "dtype", "device", "current"],
            registry=registry,
        )
        """`mode` is packed or padded."""
        self.model_packed = Gauge(
            "guerdon_model_packed",
            "1 if the model runs packed, 0 if padded.",
            model,
            registry=registry,
        )
        self.model_loads = Counter(
            "guerdon_model_loads",
            "Attempts to load a model.",
            ["model", "outcome"],
            registry=registry,
        )
        """`outcome` is loaded, refused, failed or cancelled."""
        self.model_load_seconds = Histogram(
            "guerdon_model_load_seconds", "Loading a model, probes included.", ["model"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600), registry=registry,
        )  # fmt: skip

        self.engine_busy_seconds = Counter(
            "guerdon_engine_busy_seconds",
            "Seconds the engine spent computing; its rate is the busy fraction.",
            registry=registry,
        )
        self.engine_up = Gauge(
            "guerdon_engine_up", "1 while the engine's thread takes work.", registry=registry
        )

    def of_revision(self) -> tuple[Counter | Histogram, ...]:
        """The metrics labelled by model and revision alone, and not described by the registry."""
        return (
            self.batch_tokens,
            self.batch_sequences,
            self.computed_tokens,
            self.padding_tokens,
            self.reused_tokens,
            self.truncations,
            self.scores,
            self.nonfinite_scores,
        )
