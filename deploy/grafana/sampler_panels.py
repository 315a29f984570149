"""The policy sampler's dashboard."""

from __future__ import annotations

from pictures import (
    ONE,
    Dashboard,
    Panel,
    Query,
    engines_up,
    failures,
    outcomes,
    process_panels,
    quantiles,
    rate,
    rates,
    stat,
    sums,
)

S = "guerdon_sampler"


def total(metric: str, legend: str) -> Query:
    """Per second, over all samplers."""
    return Query(rate(f"{S}_{metric}_total", ONE), legend)


VERSION = Query(f"{S}_weight_version{{{ONE}}}", "{{instance}}")
NOT_PUBLISHED = f'sum(increase({S}_updates_total{{{ONE}, outcome!="published"}}[1h]))'
MIXED, ALL = (rate(f"{S}_{each}_total", ONE) for each in ("mixed_completions", "completions"))
PHASES, UPDATES = (rate(f"{S}_update_seconds_{part}", ONE, "phase") for part in ("sum", "count"))

OVERVIEW = [
    engines_up("Samplers", S),
    stat(
        "Tokens drawn",
        "Per second, of completions that were handed over.",
        total("generated_tokens", ""),
        unit="cps",
    ),
    failures(S, ONE),
    stat(
        "Fullest",
        "Completions running and waiting over the limit, where it is worst.",
        Query(f"max(({S}_running{{{ONE}}} + {S}_waiting{{{ONE}}}) / {S}_limit{{{ONE}}})"),
        unit="percentunit",
        thresholds=[("orange", 0.8), ("red", 0.95)],
    ),
    stat("Weight version", "The weights that serve. 0: those it was started with.", VERSION),
    stat(
        "Updates not published",
        "In the last hour. The weights before them serve on; the log says why.",
        Query(f"{NOT_PUBLISHED} or vector(0)"),
        thresholds=[("red", 1)],
    ),
]

TRAFFIC = [
    Panel(
        "Calls by method",
        "Finished calls.",
        [rates(f"{S}_requests_total", ONE, "method")],
        unit="reqps",
        stack=True,
    ),
    outcomes("; FAILED_PRECONDITION asks for newer weights, as after a restart.", S, ONE),
    Panel(
        "Calls in flight", "Calls being served now.", [sums(f"{S}_requests_in_flight", "method")]
    ),
    Panel(
        "Calls by caller",
        "Names are those of the tokens file; anonymous and shared are many.",
        [rates(f"{S}_caller_requests_total", ONE, "caller")],
        unit="reqps",
        stack=True,
    ),
    Panel(
        "Tokens",
        "Drawn, and of prompts (each prompt once, however many completions it gets).",
        [total("generated_tokens", "drawn"), total("prompt_tokens", "prompts")],
        unit="cps",
    ),
    Panel(
        "Completions by finish reason",
        "length: cut at max_tokens. Many of them: the policy doesn't end by itself.",
        [rates(f"{S}_completions_total", ONE, "reason")],
        unit="cps",
        stack=True,
    ),
    Panel(
        "Under several versions",
        "Part of the completions during which the weights changed.",
        [Query(f"{MIXED} / ({ALL} > 0)")],
        unit="percentunit",
        maximum=1,
    ),
]

LATENCY = [
    Panel(
        "Whole call",
        "Generate, from arrival to its last completion.",
        quantiles(f"{S}_generate_seconds", ONE),
        unit="s",
        logarithmic=True,
    ),
    Panel(
        "A completion",
        "From its call's arrival to its end.",
        quantiles(f"{S}_completion_seconds", ONE),
        unit="s",
        logarithmic=True,
    ),
    Panel(
        "Tokens of a completion",
        "A length that grows without the reward: a policy that games it.",
        quantiles(f"{S}_completion_tokens", ONE, qs=(0.1, 0.5, 0.9)),
    ),
]

ADMISSION = [
    Panel(
        "Running, waiting and limit",
        "Completions. Waiting grows while an update stops generation.",
        [Query(f"sum({S}_{each}{{{ONE}}})", each) for each in ("running", "waiting", "limit")],
    ),
    Panel(
        "Shed",
        "Completions refused for overload, with a time to come back.",
        [total("shed", "shed")],
        unit="cps",
    ),
    Panel(
        "Dropped",
        "Accepted completions that were not handed over: expired (the deadline), "
        "cancelled (the caller left), failed.",
        [rates(f"{S}_dropped_total", ONE, "reason")],
        unit="cps",
        stack=True,
    ),
]

WEIGHTS = [
    Panel("Weight version", "A step back to 0 is a restart.", [VERSION], width=6),
    Panel(
        "Updates",
        "By source and outcome.",
        [rates(f"{S}_updates_total", ONE, "source, outcome")],
        unit="cps",
        stack=True,
        width=6,
    ),
    Panel(
        "Update, by phase (mean)",
        "receive: from begin until the bytes are there and checked. pause: while "
        "generation stands still for the load; canaries are compared while it goes on.",
        [Query(f"{PHASES} / ({UPDATES} > 0)", "{{phase}}")],
        unit="s",
        width=6,
    ),
    Panel(
        "Canary difference",
        "Of log-probabilities, sampler against trainer, at the last update. About 1e-6 "
        "in float32 and under 0.02 (mean) in bfloat16; more is refused.",
        [Query(f"max by (of) ({S}_canary_difference{{{ONE}}})", "{{of}}")],
        logarithmic=True,
        width=6,
    ),
    Panel("Tensors received", "Over gRPC.", [total("update_bytes", "bytes")], unit="Bps", width=12),
    Panel(
        "Policies",
        "What each sampler serves.",
        [Query(f"{S}_policy_info{{{ONE}}}", style="table")],
        kind="table",
        width=12,
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
