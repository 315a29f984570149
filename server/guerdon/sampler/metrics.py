"""The sampler's Prometheus metrics: every name is declared here and nowhere else.

`docs/operations.md` says how to read them.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from guerdon.serving.metrics import SECONDS_BUCKETS, Declared

TOKEN_BUCKETS: Sequence[float] = tuple(float(2**k) for k in range(16))
UPDATE_BUCKETS: Sequence[float] = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600,
)  # fmt: skip


class SamplerMetrics:
    """The metrics of one server process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        declared = Declared(registry, "guerdon_sampler")
        counter, gauge, histogram = declared.counter, declared.gauge, declared.histogram

        self.requests = counter("requests", "Finished calls.", ["method", "code"])
        """`method` is the RPC's name, `http_generate` or `http_policy`; `code` the gRPC status."""
        self.caller_requests = counter("caller_requests", "Finished calls.", ["caller", "code"])
        """`caller` is a name of the tokens file, else `shared`, `admin` or `anonymous`."""
        self.refused_calls = counter(
            "refused_calls", "Calls refused from their headers alone.", ["method", "code"]
        )
        """`code` is UNAUTHENTICATED, PERMISSION_DENIED, or RESOURCE_EXHAUSTED (`max_calls`)."""
        self.in_flight = gauge("requests_in_flight", "Calls being served.", ["method"])
        self.generate_seconds = histogram(
            "generate_seconds", "Generate from arrival to its last completion.", SECONDS_BUCKETS
        )

        self.completions = counter("completions", "Completions handed over.", ["reason"])
        """`reason` is stop or length."""
        self.completion_seconds = histogram(
            "completion_seconds",
            "A completion, from its call's arrival to its end.",
            SECONDS_BUCKETS,
        )
        self.completion_tokens = histogram(
            "completion_tokens", "Tokens of a completion.", TOKEN_BUCKETS
        )
        self.generated_tokens = counter("generated_tokens", "Tokens drawn and handed over.")
        self.prompt_tokens = counter(
            "prompt_tokens", "Tokens of accepted prompts, each prompt once."
        )
        self.mixed = counter(
            "mixed_completions", "Completions whose tokens were drawn under several versions."
        )

        self.running = gauge("running", "Completions being drawn.")
        self.waiting = gauge("waiting", "Completions that wait.")
        self.limit = gauge("limit", "Most completions running and waiting.")
        self.shed = counter("shed", "Completions refused for overload.")
        self.dropped = counter(
            "dropped", "Accepted completions that were not handed over.", ["reason"]
        )
        """`reason` is expired, cancelled (the caller left), or failed."""

        self.weight_version = gauge("weight_version", "The weights that serve.")
        self.updates = counter("updates", "Updates of the weights.", ["source", "outcome"])
        """`source` is stream, shared_path, nccl or none (before it was named); `outcome` is
        published, refused (not what they should be), invalid (a wrong message), abandoned (the
        trainer left), busy (another one was under way) or failed."""
        self.update_seconds = histogram(
            "update_seconds", "An update that was published, by phase.", UPDATE_BUCKETS, ["phase"]
        )
        """`phase` is receive, load, canary or pause (while generation stood still)."""
        self.update_bytes = counter("update_bytes", "Bytes of tensors received over gRPC.")
        self.canary_difference = gauge(
            "canary_difference",
            "Of log-probabilities, sampler against trainer, at the last "
            "published update that had canaries.",
            ["of"],
        )
        """`of` is mean or max; a refused update leaves it as it was."""

        self.engine_up = gauge("engine_up", "1 while the engine takes work.")
        self.policy_info = gauge("policy_info", "1; what is served.", ["model", "dtype"])
        self._begin()

    def _begin(self) -> None:
        """Series that alerts and panels need before their first event."""
        for reason in ("stop", "length"):
            self.completions.labels(reason)
        for reason in ("expired", "cancelled", "failed"):
            self.dropped.labels(reason)
        for outcome in ("published", "refused", "invalid", "abandoned", "failed"):
            self.updates.labels("stream", outcome)
