"""The reward server's dashboard."""

from __future__ import annotations

from pictures import (
    ONE,
    RATE,
    Dashboard,
    Panel,
    Query,
    engines_up,
    failures,
    outcomes,
    process_panels,
    quantile,
    quantiles,
    rate,
    rates,
    stat,
    sums,
)

M = f'{ONE}, model=~"$model"'
"""What every query of a metric with a model is narrowed to."""
CLASS = "model, class"


def mean_seconds(stage: str) -> Query:
    """Mean seconds of a stage, over items."""
    total, count = (rate(f"guerdon_{stage}_seconds_{part}", M) for part in ("sum", "count"))
    return Query(f"{total} / {count}", stage)


def seconds(title: str, about: str, stage: str, *, width: int = 8) -> Panel:
    """The seconds of a stage, by class."""
    queries = quantiles(f"guerdon_{stage}_seconds", M, "class")
    return Panel(title, about, queries, unit="s", logarithmic=True, width=width)


def dropped(title: str, about: str, reason: str) -> Panel:
    """Items that nobody waited for any more."""
    lost = rate("guerdon_dropped_total", f'{M}, reason="{reason}"', "class, stage")
    return Panel(
        title, about, [Query(lost, "{{class}}, {{stage}}")], unit="cps", width=12, stack=True
    )


OVERVIEW = [
    engines_up("Servers", "guerdon"),
    stat("Calls", "Finished calls.", Query(rate("guerdon_requests_total", M)), unit="reqps"),
    failures("guerdon", M),
    stat(
        "p99 online",
        "Whole online calls, from arrival to reply.",
        Query(quantile(0.99, "guerdon_request_seconds", f'{M}, class="online"', "class")),
        unit="s",
        thresholds=[("orange", 0.3), ("red", 1)],
    ),
    stat(
        "Fullest queue",
        "Queued tokens over the limit, of the server where it is worst.",
        Query(
            f"max(sum by (instance) (guerdon_queue_tokens{{{ONE}}})"
            f" / sum by (instance) (guerdon_queue_limit_tokens{{{ONE}}}))"
        ),
        unit="percentunit",
        thresholds=[("orange", 0.5), ("red", 0.7)],
    ),
    stat(
        "Scores not finite",
        "NaN or infinite scores since the servers started. They are never served.",
        Query(f"sum(guerdon_nonfinite_scores_total{{{M}}}) or vector(0)"),
        thresholds=[("red", 1)],
    ),
]

TRAFFIC = [
    Panel(
        "Calls by method",
        "Each item of a ScoreStream is a call.",
        [rates("guerdon_requests_total", M, "method")],
        unit="reqps",
        stack=True,
        width=6,
    ),
    outcomes(
        ", DEADLINE_EXCEEDED came too late. From headers: refused before the message was read.",
        "guerdon",
        M,
        width=6,
    ),
    Panel(
        "Calls in flight",
        "Calls being served now.",
        [sums("guerdon_requests_in_flight", "method")],
        width=6,
    ),
    Panel(
        "Responses scored",
        "Responses, by model and class.",
        [rates("guerdon_sequences_total", M, CLASS)],
        unit="cps",
        width=6,
        stack=True,
    ),
]

CALLERS = [
    Panel(
        "Tokens by caller",
        "Tokens scored. Names are those of the tokens file; anonymous and shared are many.",
        [rates("guerdon_caller_tokens_total", ONE, "caller, class")],
        unit="cps",
        stack=True,
    ),
    Panel(
        "Shed by caller",
        "Calls refused for overload: of the queue, or of the caller's own limits.",
        [
            rates(
                "guerdon_caller_requests_total",
                f'{ONE}, code="RESOURCE_EXHAUSTED"',
                "caller, class",
            )
        ],
        unit="reqps",
        stack=True,
    ),
    Panel(
        "Calls in flight by caller",
        "Calls being served now; max_calls bounds them.",
        [sums("guerdon_caller_requests_in_flight", "caller")],
    ),
]

LATENCY = [
    seconds("Whole call", "Successful calls, from arrival to reply.", "request"),
    seconds(
        "In the queue",
        "An item waiting for a batch. When this grows, the engine is too slow for the load.",
        "queue",
    ),
    seconds("Tokenising", "When this grows, raise encode_threads, or send token ids.", "tokenize"),
    seconds(
        "In the engine",
        "Forward passes, whole batches: smaller max_batch_tokens makes them shorter.",
        "compute",
        width=12,
    ),
    Panel(
        "Where the time goes (mean)",
        "Mean seconds per stage; both classes.",
        [mean_seconds(stage) for stage in ("tokenize", "queue", "compute")],
        unit="s",
        stack=True,
        width=12,
    ),
]

QUEUE = [
    Panel(
        "Queued tokens and limit",
        "Accepted and not yet computed, and the limit.",
        [
            sums("guerdon_queue_tokens", "class"),
            Query(f"sum(guerdon_queue_limit_tokens{{{ONE}}})", "limit"),
        ],
    ),
    Panel(
        "Queued items",
        "Items accepted and not yet computed.",
        [sums("guerdon_queue_items", "class")],
    ),
    Panel(
        "Shed",
        "Items refused for overload, with a time to come back.",
        [rates("guerdon_shed_total", M, CLASS)],
        unit="cps",
        stack=True,
    ),
    dropped(
        "Expired",
        "Items whose deadline passed: queued cost no forward pass, computing came too late.",
        "expired",
    ),
    dropped("Cancelled", "Items whose caller left.", "cancelled"),
]

ENGINE = [
    Panel(
        "Engine busy",
        "Share of the time in which each engine computes.",
        [rates("guerdon_engine_busy_seconds_total", ONE, "instance, engine")],
        unit="percentunit",
        maximum=1,
    ),
    Panel(
        "Tokens computed and reused",
        "Computed (padding included), not computed again because something else begins with them, "
        "and of those the ones out of the prefix cache, once for each batch.",
        [
            rates("guerdon_computed_tokens_total", M, "model"),
            Query(rate("guerdon_reused_prompt_tokens_total", M, "model"), "{{model}} reused"),
            Query(rate("guerdon_cached_tokens_total", M, "model"), "{{model}} out of the cache"),
        ],
        unit="cps",
    ),
    Panel(
        "Padding waste",
        "Part of the computed tokens that is only padding. Nought in packed mode.",
        [
            Query(
                f"{rate('guerdon_padding_tokens_total', M, 'model')}"
                f" / ({rate('guerdon_computed_tokens_total', M, 'model')} > 0)",
                "{{model}}",
            )
        ],
        unit="percentunit",
    ),
    Panel(
        "Tokens in a batch",
        "Padding included.",
        quantiles("guerdon_batch_tokens", M, "model", (0.5, 0.95)),
    ),
    Panel(
        "Responses in a batch",
        "One: the engine waits for work, not work for it.",
        quantiles("guerdon_batch_sequences", M, "model", (0.5, 0.95)),
    ),
    Panel(
        "Batches between layers",
        "Of online work, while bulk batches stood aside. On a GPU none.",
        [Query(rate("guerdon_preempting_batches_total", M, "model"), "{{model}}")],
        unit="cps",
    ),
    Panel(
        "Failed batches",
        "The callers in it got an error. out_of_memory counts each attempt.",
        [
            Query(
                rate("guerdon_batch_failures_total", M, "model, reason") + " or on() vector(0)",
                "{{model}} {{reason}}",
            )
        ],
        unit="cps",
    ),
    Panel(
        "Engine restarts",
        "Since the server's start: an engine ended and was started anew. The log says by what.",
        [Query(f"guerdon_engine_restarts_total{{{ONE}}}", "{{instance}} {{engine}}")],
    ),
]

SCORES = [
    Panel(
        "Scores",
        "How many raw scores fell into each bucket. Choose one model.",
        [
            Query(
                f"sum by (le) (increase(guerdon_score_bucket{{{M}}}[{RATE}]))", "{{le}}", "heatmap"
            )
        ],
        kind="heatmap",
        width=12,
    ),
    Panel(
        "Quantiles by revision",
        "Of the raw scores. Revisions of one model should differ by what was meant.",
        quantiles("guerdon_score", M, "model, revision", (0.1, 0.5, 0.9)),
        width=12,
    ),
    Panel(
        "Distance between revisions",
        "Kolmogorov-Smirnov distance over an hour: nought is the same distribution. "
        "The alert's limit is 0.2.",
        [
            Query(
                "max by (model) ("
                + " - ".join(
                    f"{edge} by (model, le) ("
                    f"sum by (model, revision, le) (rate(guerdon_score_bucket{{{M}}}[1h]))"
                    " / on (model, revision) group_left () "
                    f"(sum by (model, revision) (rate(guerdon_score_count{{{M}}}[1h])) > 0))"
                    for edge in ("max", "min")
                )
                + ")",
                "{{model}}",
            )
        ],
        unit="percentunit",
        maximum=1,
    ),
    Panel(
        "Not finite",
        "Scores that were NaN or infinite: errors.",
        [
            Query(
                rate("guerdon_nonfinite_scores_total", M, "model, revision") + " or on() vector(0)",
                "{{model}} {{revision}}",
            )
        ],
        unit="cps",
    ),
    Panel(
        "Truncated",
        "Responses whose prompt was cut, on request.",
        [rates("guerdon_truncations_total", M, "model")],
        unit="cps",
    ),
]

LOAD_SECONDS = "guerdon_model_load_seconds"
MODELS = [
    Panel(
        "Loaded revisions",
        "current: what the name stands for. mode: padded wastes work; see operations.md.",
        [Query(f"guerdon_model_info{{{M}}}", style="table")],
        kind="table",
        width=12,
    ),
    stat(
        "Mode",
        "padded is right for DeBERTa, and a fault worth a look for anything else.",
        Query(f"min by (model, revision) (guerdon_model_packed{{{M}}})", "{{model}} {{revision}}"),
        height=8,
        mappings={"1": ("packed", "green"), "0": ("padded", "orange")},
    ),
    stat(
        "Loads",
        "Attempts since the servers started. refused: the log says why.",
        sums("guerdon_model_loads_total", "model, outcome", M),
        height=8,
    ),
    stat(
        "Load time (mean)",
        "Probes included; a rolling restart waits for it.",
        Query(
            f"sum by (model) ({LOAD_SECONDS}_sum{{{M}}})"
            f" / sum by (model) ({LOAD_SECONDS}_count{{{M}}})",
            "{{model}}",
        ),
        unit="s",
        height=8,
    ),
]

JUDGES = [
    Panel(
        "Requests to judges",
        "By outcome: no_verdict is a reply that could not be read, limited is HTTP 429.",
        [rates("guerdon_judge_requests_total", M, "model, outcome")],
        unit="reqps",
        stack=True,
    ),
    Panel(
        "Seconds of a request to a judge",
        "From sending the question to the reply's end.",
        quantiles("guerdon_judge_request_seconds", M),
        unit="s",
        logarithmic=True,
    ),
    Panel(
        "Tokens and known verdicts of judges",
        "Tokens as the endpoints count them, and verdicts that were not asked for again.",
        [
            Query(rate("guerdon_judge_tokens_total", M, "model"), "{{model}} tokens"),
            Query(rate("guerdon_judge_cached_total", M, "model"), "{{model}} known"),
        ],
        unit="cps",
    ),
]

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
        ("Judges", JUDGES),
        ("Scores", SCORES),
        ("Models", MODELS),
        ("Process", process_panels("guerdon-reward")),
    ),
)
