"""The gateway's page: what it asks, and that it shows what the gateway answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from tests.support.server import RunningServer
from tests.support.tiny import STEP

from guerdon.client import RewardClient

from .form import PROMPT, STEPS, open_page, true_ranking
from .sampling import (
    events,
    fill,
    running_gateway,
    sample,
    sampled,
    shown_answers,
    shown_table,
)
from .test_access import check_accessibility
from .test_errors import expect_fault

NEAR = 6e-4
"""Scores are shown with three decimals."""
SAID = """() => {
    window.said = [];
    const status = document.getElementById("status");
    const watcher = new MutationObserver(() => window.said.push(status.textContent));
    watcher.observe(status, { childList: true });
}"""
"""Notes all that the status line says."""


def test_the_ranking_is_the_gateways(sampling: Page, server: RunningServer) -> None:
    sampling.get_by_label("Name or preset").select_option("policy:best-of-4")
    _, stream = sampled(sampling)
    told = events(stream)
    texts = [each["choices"][0]["delta"]["content"] for each in told[0:8:2]]
    choices = [each["choices"][0]["guerdon"] for each in told[1:8:2]]
    assert shown_answers(sampling) == [
        (each["candidate"], pytest.approx(each["score"], abs=NEAR)) for each in choices
    ]
    assert sampling.locator(".ranking .text").all_inner_texts() == texts
    counts = sampling.locator(".ranking .hint").all_inner_texts()
    assert [int(text.split()[0]) for text in counts] == [each["tokens"] for each in choices]
    report, facts = told[-1]["guerdon"], sampling.locator("#found .facts")
    names, values = (facts.locator(tag).all_inner_texts() for tag in ("dt", "dd"))
    shown = dict(zip(names, values, strict=True))
    assert float(shown["gain over candidate 0"]) == pytest.approx(report["gain"], abs=NEAR)
    assert shown["tokens drawn"] == str(report["tokens"])
    assert {"drawing", "scoring, after the last was drawn", "round trip, from this page"} <= {
        *names
    }
    best = choices[0]["candidate"]
    expect(sampling.get_by_role("status")).to_contain_text(
        f"4 candidates, 4 scored. Chosen: Candidate {best}, "
    )
    with RewardClient(server.address) as client:
        ranking = client.rank("sequence", [{"role": "user", "content": PROMPT}], texts).ranking
    assert [each.score.score for each in ranking] == pytest.approx(
        [each["score"] for each in choices], abs=1e-5
    )


def test_a_preset_fills_the_form_which_is_what_is_asked(sampling: Page) -> None:
    sampling.get_by_label("Name or preset").select_option("policy:careful")
    expect(sampling.get_by_label("Temperature of the choice by score")).to_have_value("0.5")
    fill(sampling, n=2, seed=7, max_tokens=4)
    body, stream = sampled(sampling)
    assert body == {
        "model": "policy",
        "messages": [{"role": "user", "content": PROMPT}],
        "best_of": 6,
        "n": 2,
        "temperature": 1,
        "top_p": 1,
        "max_tokens": 4,
        "seed": 7,
        "guerdon": {"strategy": "soft", "model": "sequence", "temperature": 0.5, "timeout": 60},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    report = events(stream)[-1]["guerdon"]
    assert len(shown_answers(sampling)) == 2
    assert [row[0] for row in shown_table(sampling)[:2]] == [
        f"Candidate {candidate}" for candidate, _ in shown_answers(sampling)
    ]
    check_table(sampling, report["scores"], 6)
    expect(sampling.locator("ol .hint").filter(has_text="cut at the most")).not_to_have_count(0)
    expect(sampling.locator("#found .facts")).to_contain_text("probability")


def test_candidates_that_were_rejected_are_told(sampling: Page) -> None:
    expect(sampling.get_by_label("Part that goes on")).to_be_hidden()
    fill(sampling, guerdon__strategy="rejection", guerdon__chunk=2)
    expect(sampling.get_by_label("Answers that come back")).to_have_value("1")
    expect(sampling.get_by_label("Part that goes on")).to_have_value("0.5")
    fill(sampling, max_tokens=16)
    _, stream = sampled(sampling)
    scores = events(stream)[-1]["guerdon"]["scores"]
    check_table(sampling, scores, 8)
    stopped = sum(each.get("ended") is False for each in scores)
    assert stopped > 0
    drawn = [row[3] for row in shown_table(sampling)]
    assert drawn == ["ended"] * (8 - stopped) + ["stopped"] * stopped


@pytest.mark.parametrize(
    "guerdon",
    [
        {"strategy": "threshold", "threshold": -1000},
        {"strategy": "adaptive", "min_gain": 0},
        {"strategy": "cascade", "small_model": "sequence", "margin": 0.01},
        {"strategy": "best_of_n"},
        {"strategy": "vote", "answer": "number", "weight": "one"},
    ],
)
def test_every_strategy_shows_its_candidates(sampling: Page, guerdon: dict[str, object]) -> None:
    fill(sampling, **{f"guerdon__{name}": value for name, value in guerdon.items()})
    _, stream = sampled(sampling)
    check_table(sampling, events(stream)[-1]["guerdon"]["scores"], 8)


def check_table(page: Page, scores: list[dict[str, Any]], count: int) -> None:
    """The table has each candidate of a report once, with what the report says of it."""
    rows = {row[0]: row[1:] for row in shown_table(page)}
    assert len(rows) == len(scores) == count
    for each in scores:
        score, tokens, drawn, *_ = rows[f"Candidate {each['candidate']}"]
        assert tokens == str(each["tokens"])
        assert drawn == ("stopped" if each.get("ended") is False else "ended")
        if each["score"] is None:
            assert score == f"none: {each['reason']}"
        else:
            assert float(score) == pytest.approx(each["score"], abs=NEAR)


def test_candidates_stand_best_first_and_those_without_a_score_last(sampling: Page) -> None:
    """A report as a cascade may make it, whose models have no common scale, with all the rest."""
    large = {"model": "large", "revision": "r"}
    small = {"model": "small", "revision": "r"}
    stop = {"score": None, "reason": "was stopped: it was not needed", "ended": False}
    scores = [
        {"candidate": 0, "score": 9.0, "tokens": 5, **small},
        {"candidate": 1, "tokens": None, **stop},
        {"candidate": 2, "score": -1.5, "tokens": 6, **large},
        {"candidate": 3, "score": 50.0, "tokens": 2, "ended": False, **large},
        {"candidate": 4, "score": 0.25, "tokens": 1024, **large},
        {"candidate": 5, "score": 0.5, "tokens": 7, **large},
        {"candidate": 6, "score": None, "tokens": 8, "reason": "is too long"},
    ]
    answer = {"candidate": 4, "score": 0.25, "tokens": 1024, "ranked": True, **large}
    report = {
        "strategy": "cascade",
        "best_of": 7,
        "ranked": True,
        "candidates": 7,
        "stopped": 1,
        "scores": scores,
        "gain": None,
        "tokens": 1052,
        "seconds": {"draw": 1.0, "score": 1.0, "total": 2.0},
    }
    usage = {"completion_tokens_details": {"accepted_prediction_tokens": 1024}, "prompt_tokens": 3}
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "so"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "guerdon": answer}]},
        {"choices": [], "usage": usage, "guerdon": report},
    ]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    sampling.route("**/v1/chat/completions", answering(stream))
    sample(sampling)
    assert shown_table(sampling) == [
        ["Candidate 4", "+0.250", "1,024", "ended", "large@r"],
        ["Candidate 5", "+0.500", "7", "ended", "large@r"],
        ["Candidate 2", "-1.500", "6", "ended", "large@r"],
        ["Candidate 0", "+9.000", "5", "ended", "small@r"],
        ["Candidate 3", "+50.000", "2", "stopped", "large@r"],
        ["Candidate 1", "none: was stopped: it was not needed", "not told", "stopped", ""],
        ["Candidate 6", "none: is too long", "8", "ended", ""],
    ]
    region = sampling.get_by_role("region", name="All candidates, best first")
    region.focus()  # by which keys can scroll it
    expect(region).to_be_focused()


def test_what_is_not_ranked_says_why(sampling: Page) -> None:
    """The process model refuses answers without a step."""
    fill(sampling, best_of=2, guerdon__model="process")
    sampling.get_by_label("Candidates, at most").press("Tab")
    sample(sampling)
    expect(sampling.get_by_role("status")).to_contain_text("2 candidates, not ranked: none of 2")
    expect(sampling.locator("ol .score")).to_have_text(["no score", "no score"])
    expect(sampling.locator("ol .bar")).to_have_count(0)
    assert all(sampling.locator("ol .text").all_inner_texts())


def test_a_field_at_fault_is_marked(sampling: Page) -> None:
    fill(sampling, guerdon__strategy="threshold")
    sample(sampling)
    wanted = sampling.get_by_label("Score at which drawing ends")
    expect_fault(sampling, wanted, "is required by threshold")
    fill(sampling, guerdon__threshold="-100", best_of=1000)
    sample(sampling)
    candidates = sampling.get_by_label("Candidates, at most")
    expect_fault(sampling, candidates, "is 1000, it must be between 1 and 64")
    fill(sampling, best_of=2.5)
    sampling.get_by_role("button", name="Sample and rank").click()
    expect(candidates).to_have_attribute("aria-invalid", "true")  # by the browser's own sentence
    fill(sampling, best_of=2)
    sample(sampling)
    assert len(shown_answers(sampling)) == 1
    expect(sampling.locator("[aria-invalid]")).to_have_count(0)


def test_progress_is_said_and_errors_end_it(sampling: Page) -> None:
    """Streams as a gateway makes them whose services slow down, or go away."""
    progress = ": 3 of 8 drawn, 2 scored\n\n"
    trouble = 'data: {"error":{"message":"the sampler is away","param":null,"code":503}}\n\n'
    sampling.evaluate(SAID)
    for stream, sentence in (
        (progress + trouble, "the sampler is away"),
        (progress, "The answer broke off before its end."),
    ):
        sampling.route("**/v1/chat/completions", answering(stream))
        sample(sampling)
        expect(sampling.get_by_role("alert")).to_have_text(sentence)
        sampling.unroute("**/v1/chat/completions")
    said = [text for text in sampling.evaluate("window.said") if text]
    assert said == ["Drawing candidates…", "3 of 8 drawn, 2 scored"] * 2


def answering(stream: str) -> Callable[[Route], None]:
    """What answers a request with a stream."""
    return lambda route: route.fulfill(body=stream, content_type="text/event-stream")


def test_a_gateway_wants_its_token(browser: Browser) -> None:
    away, environment = "127.0.0.1:1", {"GUERDON_TOKEN": "sesame"}
    with (
        running_gateway(sampler=away, reward=[f"{away}/m"], environment=environment) as gateway,
        open_page(browser, gateway.url) as page,
    ):
        token = page.get_by_label("Token, if the server wants one")
        expect_fault(page, token, "token")
        page.get_by_role("button", name="Sample and rank").click()
        expect_fault(page, page.get_by_label("Name or preset"), "There is no model to ask")
        token.fill("sesame")
        token.press("Tab")
        expect(page.get_by_role("status")).to_contain_text("names to ask for")
        sample(page)
        expect(page.get_by_role("alert")).to_contain_text("the sampler is away")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(browser: Browser, gateway: RunningServer, scheme: str) -> None:
    # Only here may a script be added to the page: axe's own.
    with open_page(browser, gateway.url, color_scheme=scheme, bypass_csp=True) as page:
        page.locator("summary").first.click()
        check_accessibility(page)
        fill(page, guerdon__strategy="cascade", guerdon__small_model="marking", guerdon__margin=0)
        fill(page, guerdon__model="attributes", max_tokens=4)
        sample(page)
        expect(page.locator("ol .step")).not_to_have_count(0)
        check_accessibility(page)
        fill(page, guerdon__model="sequence")
        fill(page, guerdon__strategy="rejection", guerdon__chunk=2, max_tokens=16)
        sample(page)
        assert len(shown_table(page)) == 8
        check_accessibility(page)
        fill(page, best_of=1000)
        sample(page)
        expect(page.locator("[aria-invalid]")).to_have_count(1)
        check_accessibility(page)


def test_a_narrow_screen_needs_no_scrolling_sideways(
    browser: Browser, gateway: RunningServer
) -> None:
    with open_page(browser, gateway.url, viewport={"width": 320, "height": 640}) as page:
        sample(page)
        expect(page.locator("#results-heading")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("model", ["attributes", "marking", "ensemble"])
def test_what_a_model_says_beside_scores_is_the_reward_servers(
    sampling: Page, server: RunningServer, model: str
) -> None:
    fill(sampling, best_of=3, guerdon__model=model)
    sampling.get_by_label("Candidates, at most").press("Tab")
    _, stream = sampled(sampling)
    told = events(stream)
    texts = [each["choices"][0]["delta"]["content"] for each in told[0:6:2]]
    choices = [each["choices"][0]["guerdon"] for each in told[1:6:2]]
    by_candidate = {each["candidate"]: each for each in told[-1]["guerdon"]["scores"]}
    with RewardClient(server.address) as client:
        ranking = client.rank(model, [{"role": "user", "content": PROMPT}], texts).ranking
    for place, (choice, wanted) in enumerate(zip(choices, ranking, strict=True)):
        assert choice == {**by_candidate[choice["candidate"]], "ranked": True}
        steps = [step["score"] for step in choice.get("steps", [])]
        assert steps == pytest.approx([step.score for step in wanted.score.steps], abs=1e-5)
        named = {each["name"]: each["value"] for each in choice.get("attributes", [])}
        assert named == pytest.approx(wanted.score.attributes, abs=1e-5)
        assert choice.get("members", []) == pytest.approx(wanted.score.members, abs=1e-5)
        assert choice.get("spread") == pytest.approx(wanted.score.spread, abs=1e-5)
        if steps:
            shown = sampling.locator("ol .step").nth(place).inner_text()
            assert float(shown.split()[-1]) == pytest.approx(steps[0], abs=NEAR)
    tables = {
        "attributes": ("Attributes", ("helpful × 1", "long × -0.5")),
        "ensemble": ("Members of the ensemble", ("member-0", "member-1")),
    }
    title, names = tables.get(model, ("", ()))
    for i, name in enumerate(names):
        row = sampling.get_by_role("table", name=title).get_by_role("row", name=name)
        found = [float(text) for text in row.get_by_role("cell").all_inner_texts()]
        if model == "attributes":
            values = [each["attributes"][i]["value"] for each in choices]
        else:
            values = [each["members"][i] for each in choices]
        assert found == pytest.approx(values, abs=NEAR)


def test_steps_of_sampled_answers_are_spans(stepping: Page, server: RunningServer) -> None:
    fill(stepping, best_of=2)
    stepping.get_by_label("Candidates, at most").press("Tab")
    sample(stepping)
    wanted = true_ranking(server.address, "process", STEPS)
    for place, each in enumerate(wanted):
        answer, texts = stepping.locator("ol .text").nth(place), STEPS[each.index].split(STEP)
        shown = [text.split(f" Step {i + 1}: ") for i, text in enumerate(spans_of(answer))]
        assert [text for text, _ in shown] == texts[:-1]
        assert [float(number) for _, number in shown] == pytest.approx(
            [step.score for step in each.score.steps], abs=NEAR
        )
        assert answer.text_content().endswith(texts[-1])


def spans_of(answer: Locator) -> list[str]:
    """The steps of a shown answer, each with its number."""
    return answer.locator(".step").all_text_contents()


def test_the_reward_models_cards_and_page_are_there(stepping: Page, server: RunningServer) -> None:
    with RewardClient(server.address) as client:
        models = [client.get_model(name) for name in ("process", "attributes")]
    for model in models:
        card = stepping.locator("details").filter(has_text=f"Card of the reward model {model.name}")
        card.locator("summary").click()
        names, values = (card.locator(tag).all_inner_texts() for tag in ("dt", "dd"))
        told = dict(zip(names, values, strict=True))
        assert told["revision"] == model.revision
        assert told["architecture"] == model.architecture
        assert told["max tokens"] == str(model.max_tokens)
        assert told["parameters"] == f"{model.parameters:,}"
    assert told["attributes"] == "helpful × 1, long × -0.5"
    stepping.get_by_role("link", name="the reward server's own page").click()
    assert stepping.url == f"{server.url}/"
    expect(stepping.get_by_role("button", name="Rank the answers")).to_be_visible()


def test_a_model_that_can_not_be_looked_at_says_so(browser: Browser) -> None:
    away = "127.0.0.1:1"
    with (
        running_gateway(sampler=away, reward=[f"{away}/m"]) as gateway,
        open_page(browser, gateway.url) as page,
    ):
        expect(page.locator("#cards")).to_contain_text("The reward model m can't be looked at now")
        expect(page.get_by_label("Name or preset").locator("option")).not_to_have_count(0)
        expect(page.get_by_role("link", name="the reward server's own page")).to_have_count(0)


def test_votes_are_told(sampling: Page) -> None:
    fill(sampling, guerdon__strategy="vote", guerdon__answer="number")
    _, stream = sampled(sampling)
    told = events(stream)[-1]["guerdon"]["votes"]
    votes = "; ".join(f"{each['answer']}: {each['weight']}" for each in told)
    expect(sampling.locator("#found .facts dd").filter(has_text=votes)).to_have_count(1)
