"""The best-of-n gateway's dashboard."""

from __future__ import annotations

from pictures import (
    ONE,
    Dashboard,
    Panel,
    Query,
    failures,
    names,
    outcomes,
    process_panels,
    quantile,
    quantiles,
    rate,
    rates,
    stat,
    sums,
)

G = "guerdon_gateway"
JOB = "guerdon-gateway"


def total(metric: str, by: str = "") -> str:
    """Per second, over all gateways."""
    return rate(f"{G}_{metric}_total", ONE, by)


NOT_RANKED = rate(f"{G}_answers_total", f'{ONE}, ranked="no"')
FOR_RANKING = rate(f"{G}_answers_total", f'{ONE}, ranked=~"yes|no"')
UNRANKED = Query(f"{NOT_RANKED} / ({FOR_RANKING} > 0)", "unranked")
DRAWN_PER_SERVED = f"{total('drawn_tokens')} / ({total('served_tokens')} > 0)"
GAIN = (
    f"{rate(f'{G}_reward_gain_sum', ONE, 'strategy')} "
    f"/ ({rate(f'{G}_reward_gain_count', ONE, 'strategy')} > 0)"
)

OVERVIEW = [
    stat(
        "Gateways ready",
        "Red: some take no work.",
        Query(f'min(guerdon_ready{{job="{JOB}", {ONE}}})', "all ready"),
        mappings={"1": ("all ready", "green"), "0": ("NOT READY", "red")},
    ),
    stat("Answers", "Per second.", Query(total("answers")), unit="cps"),
    failures(G, ONE),
    stat(
        "Unranked",
        "Part of the answers that are the first candidate, since no ranking was to be had.",
        UNRANKED,
        unit="percentunit",
        thresholds=[("orange", 0.01), ("red", 0.05)],
    ),
    stat("Tokens drawn for each served", "What an answer costs.", Query(DRAWN_PER_SERVED)),
    stat(
        "p95 of best answers",
        "From a call's arrival to its best answer.",
        Query(quantile(0.95, f"{G}_answer_seconds", ONE, "")),
        unit="s",
        thresholds=[("orange", 15), ("red", 30)],
    ),
]

TRAFFIC = [
    Panel(
        "Calls by method",
        "Finished calls.",
        [rates(f"{G}_requests_total", ONE, "method")],
        unit="reqps",
        stack=True,
    ),
    outcomes(" or a caller's spending; UNAVAILABLE: the policy or the rewards are away.", G, ONE),
    Panel(
        "Calls in flight", "Calls being served now.", [sums(f"{G}_requests_in_flight", "method")]
    ),
    Panel(
        "Calls by caller",
        "Names are those of the tokens file; anonymous and shared are many.",
        [rates(f"{G}_caller_requests_total", ONE, "caller")],
        unit="reqps",
        stack=True,
        width=12,
    ),
    Panel(
        "Refused for spending",
        "Calls refused for the tokens that a caller may spend.",
        [rates(f"{G}_spending_refused_total", ONE, "caller")],
        unit="reqps",
        stack=True,
        width=12,
    ),
]

RANKING = [
    Panel(
        "Answers by strategy",
        "passed: not for ranking, such as those with tools.",
        [rates(f"{G}_answers_total", ONE, "strategy, ranked")],
        unit="cps",
        stack=True,
    ),
    Panel(
        "Unranked share",
        "Of the answers that were to be ranked.",
        [UNRANKED],
        unit="percentunit",
        maximum=1,
    ),
    Panel(
        "Refused for lack of a ranking",
        "The rewards were away, late or changed meanwhile, or gave no candidate a score.",
        [Query(total("unranked_refused"), "refused")],
        unit="reqps",
    ),
    Panel(
        "Candidates",
        "Of answered calls. unscored: refused by the reward model, or not needed; stopped: "
        "before their end.",
        [rates(f"{G}_candidates_total", ONE, "outcome")],
        unit="cps",
        stack=True,
    ),
    Panel(
        "Reward gained over the first answer (mean)",
        "The answer's score less that of candidate 0, in the reward model's own units. Only of "
        "answers whose candidate 0 was scored whole, by the same model: calls that stopped it "
        "(threshold, rejection, adaptive), and cascades whose two models scored the two, are left "
        "out.",
        [Query(GAIN, names("strategy"))],
    ),
    Panel(
        "Reward gained (quantiles)",
        "Of the same answers. Near 0: the candidates are alike, or the first is as good as the "
        "best.",
        quantiles(f"{G}_reward_gain", ONE, qs=(0.1, 0.5, 0.9)),
    ),
    Panel(
        "Cascades",
        "clear: decided by the small model; confirmed, overruled: the large one was asked, and "
        "agreed or not.",
        [rates(f"{G}_cascades_total", ONE, "decided")],
        unit="cps",
        stack=True,
        width=24,
    ),
]

COST = [
    Panel(
        "Tokens",
        "drawn: for answered calls; served: of the choices that were sent; unanswered: drawn for "
        "calls that got no answer.",
        [Query(total(f"{each}_tokens"), each) for each in ("drawn", "served", "unanswered")],
        unit="cps",
    ),
    Panel(
        "Tokens drawn for each served",
        "Quantiles over answers.",
        quantiles(f"{G}_tokens_per_served_token", ONE),
    ),
    Panel(
        "Time to best answer",
        "From a call's arrival.",
        quantiles(f"{G}_answer_seconds", ONE),
        unit="s",
        logarithmic=True,
    ),
    Panel(
        "Time to best answer, by phase",
        "draw: to the last candidate's end; score: what scoring added.",
        quantiles(f"{G}_phase_seconds", ONE, "phase", qs=(0.5, 0.95)),
        unit="s",
        logarithmic=True,
        width=24,
    ),
]

GATEWAY = Dashboard(
    uid="guerdon-gateway",
    title="Guerdon best-of-n gateway",
    about="What the best of several answers gains and costs, and why some are not ranked.",
    variables=(("instance", f"label_values({G}_answers_total, instance)"),),
    rows=(
        ("Overview", OVERVIEW),
        ("Traffic and errors", TRAFFIC),
        ("Ranking", RANKING),
        ("Cost", COST),
        ("Process", process_panels(JOB)),
    ),
)
