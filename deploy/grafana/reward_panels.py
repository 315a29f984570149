"""The reward server's dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from pictures import ONE, RATE, Dashboard, Panel, Query, process_panels, quantile, rate

M = f'{ONE}, model=~"$model"'
"""What every query of a metric with a model is narrowed to."""


def quantiles(metric: str, by: str, qs: Sequence[float] = (0.5, 0.95, 0.99)) -> list[Query]:
    """p50, p95, … of a histogram, by labels."""
    names = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return [Query(expr=quantile(q, metric, M, by), legend=f"p{round(q * 100)} {names}") for q in qs]


def mean_seconds(stage: str) -> Query:
    """Mean seconds of a stage, over items."""
    metric = f"guerdon_{stage}_seconds"
    total, count = (f"sum(rate({metric}_{part}{{{M}}}[{RATE}]))" for part in ("sum", "count"))
    return Query(expr=f"{total} / {count}", legend=stage)


OVERVIEW = [
    Panel(
        title="Engines up",
        kind="stat",
        width=4,
        height=4,
        about="Servers whose engine takes work. Red: some don't.",
        queries=[Query(expr=f"min(guerdon_engine_up{{{ONE}}})", legend="all up")],
        mappings={"1": ("all up", "green"), "0": ("DOWN", "red")},
    ),
    Panel(
        title="Calls",
        kind="stat",
        unit="reqps",
        width=4,
        height=4,
        about="Finished calls.",
        queries=[Query(expr=f"sum(rate(guerdon_requests_total{{{M}}}[{RATE}]))")],
    ),
    Panel(
        title="Failures of ours",
        kind="stat",
        unit="percentunit",
        width=4,
        height=4,
        about="Calls that ended with INTERNAL, UNKNOWN or DATA_LOSS.",
        queries=[
            Query(
                expr="(sum(rate(guerdon_requests_total{"
                f'{M}, code=~"INTERNAL|UNKNOWN|DATA_LOSS"}}[{RATE}])) or vector(0))'
                f" / sum(rate(guerdon_requests_total{{{M}}}[{RATE}]))"
            )
        ],
        thresholds=[("orange", 0.001), ("red", 0.01)],
    ),
    Panel(
        title="p99 online",
        kind="stat",
        unit="s",
        width=4,
        height=4,
        about="Whole online calls, from arrival to reply.",
        queries=[
            Query(expr=quantile(0.99, "guerdon_request_seconds", f'{M}, class="online"', "class"))
        ],
        thresholds=[("orange", 0.3), ("red", 1)],
    ),
    Panel(
        title="Fullest queue",
        kind="stat",
        unit="percentunit",
        width=4,
        height=4,
        about="Queued tokens over the limit, of the server where it is worst.",
        queries=[
            Query(
                expr=f"max(sum by (instance) (guerdon_queue_tokens{{{ONE}}})"
                f" / sum by (instance) (guerdon_queue_limit_tokens{{{ONE}}}))"
            )
        ],
        thresholds=[("orange", 0.5), ("red", 0.7)],
    ),
    Panel(
        title="Scores not finite",
        kind="stat",
        width=4,
        height=4,
        about="NaN or infinite scores since the servers started. They are never served.",
        queries=[Query(expr=f"sum(guerdon_nonfinite_scores_total{{{M}}}) or vector(0)")],
        thresholds=[("red", 1)],
    ),
]

TRAFFIC = [
    Panel(
        title="Calls by method",
        unit="reqps",
        about="Each item of a ScoreStream is a call.",
        queries=[Query(expr=rate("guerdon_requests_total", M, "method"), legend="{{method}}")],
        stack=True,
        width=6,
    ),
    Panel(
        title="Calls by outcome",
        unit="reqps",
        width=6,
        about="gRPC status. RESOURCE_EXHAUSTED is overload, DEADLINE_EXCEEDED came too late. "
        "From headers: refused before the message was read.",
        queries=[
            Query(expr=rate("guerdon_requests_total", M, "code"), legend="{{code}}"),
            Query(
                expr=rate("guerdon_refused_calls_total", ONE, "code") + " or vector(0)",
                legend="{{code}} (from headers)",
            ),
        ],
        stack=True,
    ),
    Panel(
        title="Calls in flight",
        about="Calls being served now.",
        width=6,
        queries=[
            Query(
                expr=f"sum by (method) (guerdon_requests_in_flight{{{ONE}}})", legend="{{method}}"
            )
        ],
    ),
    Panel(
        title="Responses scored",
        unit="cps",
        width=6,
        about="Responses, by model and class.",
        queries=[
            Query(
                expr=rate("guerdon_sequences_total", M, "model, class"),
                legend="{{model}} {{class}}",
            )
        ],
        stack=True,
    ),
]

CALLERS = [
    Panel(
        title="Tokens by caller",
        unit="cps",
        stack=True,
        about="Tokens scored. Names are those of the tokens file; anonymous and shared are many.",
        queries=[
            Query(
                expr=rate("guerdon_caller_tokens_total", ONE, "caller, class"),
                legend="{{caller}} {{class}}",
            )
        ],
    ),
    Panel(
        title="Shed by caller",
        unit="reqps",
        stack=True,
        about="Calls refused for overload: of the queue, or of the caller's own limits.",
        queries=[
            Query(
                expr=rate(
                    "guerdon_caller_requests_total",
                    f'{ONE}, code="RESOURCE_EXHAUSTED"',
                    "caller, class",
                ),
                legend="{{caller}} {{class}}",
            )
        ],
    ),
    Panel(
        title="Calls in flight by caller",
        about="Calls being served now; max_calls bounds them.",
        queries=[
            Query(
                expr=f"sum by (caller) (guerdon_caller_requests_in_flight{{{ONE}}})",
                legend="{{caller}}",
            )
        ],
    ),
]

LATENCY = [
    Panel(
        title="Whole call",
        unit="s",
        logarithmic=True,
        queries=quantiles("guerdon_request_seconds", "class"),
        about="Successful calls, from arrival to reply.",
    ),
    Panel(
        title="In the queue",
        unit="s",
        logarithmic=True,
        about="An item waiting for a batch. When this grows, the engine is too slow for the load.",
        queries=quantiles("guerdon_queue_seconds", "class"),
    ),
    Panel(
        title="Tokenising",
        unit="s",
        logarithmic=True,
        about="When this grows, raise encode_threads, or send token ids.",
        queries=quantiles("guerdon_tokenize_seconds", "class"),
    ),
    Panel(
        title="In the engine",
        unit="s",
        logarithmic=True,
        width=12,
        about="Forward passes, whole batches: smaller max_batch_tokens makes them shorter.",
        queries=quantiles("guerdon_compute_seconds", "class"),
    ),
    Panel(
        title="Where the time goes (mean)",
        unit="s",
        stack=True,
        width=12,
        about="Mean seconds per stage; both classes.",
        queries=[mean_seconds(stage) for stage in ("tokenize", "queue", "compute")],
    ),
]

QUEUE = [
    Panel(
        title="Queued tokens and limit",
        about="Accepted and not yet computed, and the limit.",
        queries=[
            Query(expr=f"sum by (class) (guerdon_queue_tokens{{{ONE}}})", legend="{{class}}"),
            Query(expr=f"sum(guerdon_queue_limit_tokens{{{ONE}}})", legend="limit"),
        ],
    ),
    Panel(
        title="Queued items",
        about="Items accepted and not yet computed.",
        queries=[Query(expr=f"sum by (class) (guerdon_queue_items{{{ONE}}})", legend="{{class}}")],
    ),
    Panel(
        title="Shed",
        unit="cps",
        about="Items refused for overload, with a time to come back.",
        queries=[
            Query(expr=rate("guerdon_shed_total", M, "model, class"), legend="{{model}} {{class}}")
        ],
        stack=True,
    ),
    Panel(
        title="Expired",
        unit="cps",
        width=12,
        about="Items whose deadline passed: queued cost no forward pass, computing came too late.",
        queries=[
            Query(
                expr=rate("guerdon_dropped_total", f'{M}, reason="expired"', "class, stage"),
                legend="{{class}}, {{stage}}",
            )
        ],
        stack=True,
    ),
    Panel(
        title="Cancelled",
        unit="cps",
        width=12,
        about="Items whose caller left.",
        queries=[
            Query(
                expr=rate("guerdon_dropped_total", f'{M}, reason="cancelled"', "class, stage"),
                legend="{{class}}, {{stage}}",
            )
        ],
        stack=True,
    ),
]

ENGINE = [
    Panel(
        title="Engine busy",
        unit="percentunit",
        maximum=1,
        about="Share of the time in which the engine computes.",
        queries=[
            Query(
                expr=rate("guerdon_engine_busy_seconds_total", ONE, "instance"),
                legend="{{instance}}",
            )
        ],
    ),
    Panel(
        title="Tokens computed and reused",
        unit="cps",
        about="Computed (padding included), and prompt tokens taken from a shared prefix instead.",
        queries=[
            Query(expr=rate("guerdon_computed_tokens_total", M, "model"), legend="{{model}}"),
            Query(
                expr=rate("guerdon_reused_prompt_tokens_total", M, "model"),
                legend="{{model}} reused",
            ),
        ],
    ),
    Panel(
        title="Padding waste",
        unit="percentunit",
        about="Part of the computed tokens that is only padding. Nought in packed mode.",
        queries=[
            Query(
                expr=f"{rate('guerdon_padding_tokens_total', M, 'model')}"
                f" / ({rate('guerdon_computed_tokens_total', M, 'model')} > 0)",
                legend="{{model}}",
            )
        ],
    ),
    Panel(
        title="Tokens in a batch",
        about="Padding included.",
        queries=quantiles("guerdon_batch_tokens", "model", (0.5, 0.95)),
    ),
    Panel(
        title="Responses in a batch",
        about="One: the engine waits for work, not work for it.",
        queries=quantiles("guerdon_batch_sequences", "model", (0.5, 0.95)),
    ),
    Panel(
        title="Failed batches",
        unit="cps",
        about="The callers in it got an error. out_of_memory counts each attempt.",
        queries=[
            Query(
                expr=f"{rate('guerdon_batch_failures_total', M, 'model, reason')}"
                " or on() vector(0)",
                legend="{{model}} {{reason}}",
            )
        ],
    ),
]

SCORES = [
    Panel(
        title="Scores",
        kind="heatmap",
        width=12,
        about="How many raw scores fell into each bucket. Choose one model.",
        queries=[
            Query(
                expr=f"sum by (le) (increase(guerdon_score_bucket{{{M}}}[{RATE}]))",
                legend="{{le}}",
                style="heatmap",
            )
        ],
    ),
    Panel(
        title="Quantiles by revision",
        width=12,
        about="Of the raw scores. Revisions of one model should differ by what was meant.",
        queries=quantiles("guerdon_score", "model, revision", (0.1, 0.5, 0.9)),
    ),
    Panel(
        title="Distance between revisions",
        unit="percentunit",
        maximum=1,
        about="Kolmogorov-Smirnov distance over an hour: nought is the same distribution. "
        "The alert's limit is 0.2.",
        queries=[
            Query(
                expr="max by (model) ("
                + " - ".join(
                    f"{edge} by (model, le) ("
                    f"sum by (model, revision, le) (rate(guerdon_score_bucket{{{M}}}[1h]))"
                    " / on (model, revision) group_left () "
                    f"(sum by (model, revision) (rate(guerdon_score_count{{{M}}}[1h])) > 0))"
                    for edge in ("max", "min")
                )
                + ")",
                legend="{{model}}",
            )
        ],
    ),
    Panel(
        title="Not finite",
        unit="cps",
        about="Scores that were NaN or infinite: errors.",
        queries=[
            Query(
                expr=f"{rate('guerdon_nonfinite_scores_total', M, 'model, revision')}"
                " or on() vector(0)",
                legend="{{model}} {{revision}}",
            )
        ],
    ),
    Panel(
        title="Truncated",
        unit="cps",
        about="Responses whose prompt was cut, on request.",
        queries=[Query(expr=rate("guerdon_truncations_total", M, "model"), legend="{{model}}")],
    ),
]

MODELS = [
    Panel(
        title="Loaded revisions",
        kind="table",
        width=12,
        about="current: what the name stands for. mode: padded wastes work; see operations.md.",
        queries=[Query(expr=f"guerdon_model_info{{{M}}}", style="table")],
    ),
    Panel(
        title="Mode",
        kind="stat",
        width=4,
        about="padded is right for DeBERTa, and a fault worth a look for anything else.",
        queries=[
            Query(
                expr=f"min by (model, revision) (guerdon_model_packed{{{M}}})",
                legend="{{model}} {{revision}}",
            )
        ],
        mappings={"1": ("packed", "green"), "0": ("padded", "orange")},
    ),
    Panel(
        title="Loads",
        kind="stat",
        width=4,
        about="Attempts since the servers started. refused: the log says why.",
        queries=[
            Query(
                expr=f"sum by (model, outcome) (guerdon_model_loads_total{{{M}}})",
                legend="{{model}} {{outcome}}",
            )
        ],
    ),
    Panel(
        title="Load time (mean)",
        kind="stat",
        unit="s",
        width=4,
        about="Probes included; a rolling restart waits for it.",
        queries=[
            Query(
                expr=f"sum by (model) (guerdon_model_load_seconds_sum{{{M}}})"
                f" / sum by (model) (guerdon_model_load_seconds_count{{{M}}})",
                legend="{{model}}",
            )
        ],
    ),
]

PROCESS = process_panels("guerdon-reward")

REWARD_SERVER = Dashboard(
    uid="guerdon-reward-server",
    title="Guerdon reward server",
    about="What the reward servers do, and why a night is bad.",
    variables=(
        ("instance", "label_values(guerdon_engine_up, instance)"),
        ("model", 'label_values(guerdon_model_info{instance=~"$instance"}, model)'),
    ),
    rows=(
        ("Overview", OVERVIEW),
        ("Traffic and errors", TRAFFIC),
        ("Callers", CALLERS),
        ("Latency", LATENCY),
        ("Queue and admission", QUEUE),
        ("Engine", ENGINE),
        ("Scores", SCORES),
        ("Models", MODELS),
        ("Process", PROCESS),
    ),
)
