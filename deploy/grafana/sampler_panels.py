"""The policy sampler's dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from pictures import ONE, RATE, Dashboard, Panel, Query, process_panels, quantile, rate

S = "guerdon_sampler"


def quantiles(metric: str, qs: Sequence[float] = (0.5, 0.95, 0.99)) -> list[Query]:
    """p50, p95, … of a histogram, over all samplers."""
    return [Query(expr=quantile(q, f"{S}_{metric}", ONE, ""), legend=f"p{q * 100:g}") for q in qs]


def total(metric: str, legend: str) -> Query:
    """Per second, over all samplers."""
    return Query(expr=f"sum(rate({S}_{metric}_total{{{ONE}}}[{RATE}]))", legend=legend)


OVERVIEW = [
    Panel(
        title="Engines up",
        kind="stat",
        width=4,
        height=4,
        about="Samplers whose engine takes work. Red: some don't.",
        queries=[Query(expr=f"min({S}_engine_up{{{ONE}}})", legend="all up")],
        mappings={"1": ("all up", "green"), "0": ("DOWN", "red")},
    ),
    Panel(
        title="Tokens drawn",
        kind="stat",
        unit="cps",
        width=4,
        height=4,
        about="Per second, of completions that were handed over.",
        queries=[total("generated_tokens", "")],
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
                expr=f"(sum(rate({S}_requests_total{{"
                f'{ONE}, code=~"INTERNAL|UNKNOWN|DATA_LOSS"}}[{RATE}])) or vector(0))'
                f" / sum(rate({S}_requests_total{{{ONE}}}[{RATE}]))"
            )
        ],
        thresholds=[("orange", 0.001), ("red", 0.01)],
    ),
    Panel(
        title="Fullest",
        kind="stat",
        unit="percentunit",
        width=4,
        height=4,
        about="Completions running and waiting over the limit, where it is worst.",
        queries=[
            Query(expr=f"max(({S}_running{{{ONE}}} + {S}_waiting{{{ONE}}}) / {S}_limit{{{ONE}}})")
        ],
        thresholds=[("orange", 0.8), ("red", 0.95)],
    ),
    Panel(
        title="Weight version",
        kind="stat",
        width=4,
        height=4,
        about="The weights that serve. 0: those it was started with.",
        queries=[Query(expr=f"{S}_weight_version{{{ONE}}}", legend="{{instance}}")],
    ),
    Panel(
        title="Updates not published",
        kind="stat",
        width=4,
        height=4,
        about="In the last hour. The weights before them serve on; the log says why.",
        queries=[
            Query(
                expr=f'sum(increase({S}_updates_total{{{ONE}, outcome!="published"}}[1h]))'
                " or vector(0)"
            )
        ],
        thresholds=[("red", 1)],
    ),
]

TRAFFIC = [
    Panel(
        title="Calls by method",
        unit="reqps",
        about="Finished calls.",
        queries=[Query(expr=rate(f"{S}_requests_total", ONE, "method"), legend="{{method}}")],
        stack=True,
    ),
    Panel(
        title="Calls by outcome",
        unit="reqps",
        about="gRPC status. RESOURCE_EXHAUSTED is overload; FAILED_PRECONDITION asks for newer "
        "weights, as after a restart.",
        queries=[
            Query(expr=rate(f"{S}_requests_total", ONE, "code"), legend="{{code}}"),
            Query(
                expr=rate(f"{S}_refused_calls_total", ONE, "code") + " or vector(0)",
                legend="{{code}} (from headers)",
            ),
        ],
        stack=True,
    ),
    Panel(
        title="Calls in flight",
        about="Calls being served now.",
        queries=[
            Query(expr=f"sum by (method) ({S}_requests_in_flight{{{ONE}}})", legend="{{method}}")
        ],
    ),
    Panel(
        title="Calls by caller",
        unit="reqps",
        about="Names are those of the tokens file; anonymous and shared are many.",
        queries=[
            Query(expr=rate(f"{S}_caller_requests_total", ONE, "caller"), legend="{{caller}}")
        ],
        stack=True,
    ),
    Panel(
        title="Tokens",
        unit="cps",
        about="Drawn, and of prompts (each prompt once, however many completions it gets).",
        queries=[total("generated_tokens", "drawn"), total("prompt_tokens", "prompts")],
    ),
    Panel(
        title="Completions by finish reason",
        unit="cps",
        about="length: cut at max_tokens. Many of them: the policy doesn't end by itself.",
        queries=[Query(expr=rate(f"{S}_completions_total", ONE, "reason"), legend="{{reason}}")],
        stack=True,
    ),
    Panel(
        title="Under several versions",
        unit="percentunit",
        maximum=1,
        about="Part of the completions during which the weights changed.",
        queries=[
            Query(
                expr=f"sum(rate({S}_mixed_completions_total{{{ONE}}}[{RATE}]))"
                f" / (sum(rate({S}_completions_total{{{ONE}}}[{RATE}])) > 0)"
            )
        ],
    ),
]

LATENCY = [
    Panel(
        title="Whole call",
        unit="s",
        logarithmic=True,
        about="Generate, from arrival to its last completion.",
        queries=quantiles("generate_seconds"),
    ),
    Panel(
        title="A completion",
        unit="s",
        logarithmic=True,
        about="From its call's arrival to its end.",
        queries=quantiles("completion_seconds"),
    ),
    Panel(
        title="Tokens of a completion",
        about="A length that grows without the reward: a policy that games it.",
        queries=quantiles("completion_tokens", (0.1, 0.5, 0.9)),
    ),
]

ADMISSION = [
    Panel(
        title="Running, waiting and limit",
        about="Completions. Waiting grows while an update stops generation.",
        queries=[
            Query(expr=f"sum({S}_running{{{ONE}}})", legend="running"),
            Query(expr=f"sum({S}_waiting{{{ONE}}})", legend="waiting"),
            Query(expr=f"sum({S}_limit{{{ONE}}})", legend="limit"),
        ],
    ),
    Panel(
        title="Shed",
        unit="cps",
        about="Completions refused for overload, with a time to come back.",
        queries=[total("shed", "shed")],
    ),
    Panel(
        title="Dropped",
        unit="cps",
        about="Accepted completions that were not handed over: expired (the deadline), "
        "cancelled (the caller left), failed.",
        queries=[Query(expr=rate(f"{S}_dropped_total", ONE, "reason"), legend="{{reason}}")],
        stack=True,
    ),
]

WEIGHTS = [
    Panel(
        title="Weight version",
        about="A step back to 0 is a restart.",
        queries=[Query(expr=f"{S}_weight_version{{{ONE}}}", legend="{{instance}}")],
        width=6,
    ),
    Panel(
        title="Updates",
        unit="cps",
        about="By source and outcome.",
        queries=[
            Query(
                expr=rate(f"{S}_updates_total", ONE, "source, outcome"),
                legend="{{source}} {{outcome}}",
            )
        ],
        stack=True,
        width=6,
    ),
    Panel(
        title="Update, by phase (mean)",
        unit="s",
        about="receive: from begin until the bytes are there and checked. pause: while "
        "generation stands still for the load; canaries are compared while it goes on.",
        queries=[
            Query(
                expr=f"{rate(f'{S}_update_seconds_sum', ONE, 'phase')}"
                f" / ({rate(f'{S}_update_seconds_count', ONE, 'phase')} > 0)",
                legend="{{phase}}",
            )
        ],
        width=6,
    ),
    Panel(
        title="Canary difference",
        logarithmic=True,
        about="Of log-probabilities, sampler against trainer, at the last update. About 1e-6 "
        "in float32 and under 0.02 (mean) in bfloat16; more is refused.",
        queries=[Query(expr=f"max by (of) ({S}_canary_difference{{{ONE}}})", legend="{{of}}")],
        width=6,
    ),
    Panel(
        title="Tensors received",
        unit="Bps",
        about="Over gRPC.",
        queries=[total("update_bytes", "bytes")],
        width=12,
    ),
    Panel(
        title="Policies",
        kind="table",
        width=12,
        about="What each sampler serves.",
        queries=[Query(expr=f"{S}_policy_info{{{ONE}}}", style="table")],
    ),
]

SAMPLER = Dashboard(
    uid="guerdon-sampler",
    title="Guerdon policy sampler",
    about="What the samplers draw, under which weights, and why a run stands still.",
    variables=(("instance", f"label_values({S}_engine_up, instance)"),),
    rows=(
        ("Overview", OVERVIEW),
        ("Traffic and errors", TRAFFIC),
        ("Latency and length", LATENCY),
        ("Admission", ADMISSION),
        ("Weights", WEIGHTS),
        ("Process", process_panels("guerdon-sampler")),
    ),
)
