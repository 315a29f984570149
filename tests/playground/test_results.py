"""What the playground shows: rankings, attributes, steps, scales, timings, cards."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.support.server import RunningServer
from tests.support.tiny import STEP

from guerdon.client import RewardClient

from .form import (
    ANSWERS,
    PROMPT,
    STEPS,
    choose,
    rank,
    shown_ranking,
    true_ranking,
    write_answers,
)

NEAR = 6e-4
"""Scores are shown with three decimals."""


@pytest.mark.parametrize("model", ["sequence", "attributes"])
def test_a_ranking_is_the_servers(page: Page, server: RunningServer, model: str) -> None:
    rank(page, model)
    wanted, found = true_ranking(server.address, model, ANSWERS), shown_ranking(page)
    assert [place for place, _ in found] == [each.index for each in wanted]
    assert [score for _, score in found] == pytest.approx(
        [each.score.score for each in wanted], abs=NEAR
    )
    assert page.locator(".ranking .text").all_inner_texts() == [ANSWERS[i] for i, _ in found]
    counts = page.locator(".ranking .hint").all_inner_texts()
    assert [int(text.split()[0]) for text in counts] == [each.score.token_count for each in wanted]
    expect(page.get_by_role("status")).to_contain_text(
        f"3 answers scored. Best: Answer {wanted[0].index + 1},"
    )
    times = page.locator("#found .facts dd").all_inner_texts()
    assert len(times) == 5
    assert all(float(text.split()[0]) >= 0 for text in times)


def test_bars_reach_from_zero_to_the_score(page: Page) -> None:
    rank(page, "sequence")
    scores = [score for _, score in shown_ranking(page)]
    low, high = min(0.0, *scores), max(0.0, *scores)
    bars = page.locator(".bar")
    for place, score in enumerate(scores):
        whole, fill = bars.nth(place).bounding_box(), bars.nth(place).locator("span").bounding_box()
        assert whole is not None
        assert fill is not None
        assert fill["width"] / whole["width"] == pytest.approx(abs(score) / (high - low), abs=0.01)
        start = (fill["x"] - whole["x"]) / whole["width"]
        assert start == pytest.approx((min(0.0, score) - low) / (high - low), abs=0.01)


def test_attributes_are_a_table(page: Page, server: RunningServer) -> None:
    rank(page, "attributes")
    table = page.get_by_role("table", name="Attributes")
    wanted = true_ranking(server.address, "attributes", ANSWERS)
    headings = table.get_by_role("columnheader").all_inner_texts()
    assert headings == [f"Answer {each.index + 1}" for each in wanted]
    for name, weight in (("helpful", "1"), ("long", "-0.5")):
        row = table.get_by_role("row", name=f"{name} × {weight}")
        values = [float(text) for text in row.get_by_role("cell").all_inner_texts()]
        assert values == pytest.approx([each.score.attributes[name] for each in wanted], abs=NEAR)


def test_steps_are_spans_with_their_numbers(page: Page, server: RunningServer) -> None:
    choose(page, "process")
    expect(page.locator("#steps-hint")).to_contain_text(STEP)
    rank(page, "process", STEPS)
    for place, each in enumerate(true_ranking(server.address, "process", STEPS)):
        answer, steps = page.locator(".ranking .text").nth(place), each.score.steps
        spans = answer.locator(".step")
        texts = STEPS[each.index].split(STEP)
        for i, step in enumerate(steps):
            span = spans.nth(i)
            text, number = span.text_content().split(f" Step {i + 1}: ")
            assert text == texts[i]
            assert float(number) == pytest.approx(step.score, abs=NEAR)
            side = "above" if step.score >= 0 else "below"
            assert side in (span.get_attribute("class") or "").split()
        assert spans.count() == len(steps) == len(texts) - 1
        assert answer.text_content().endswith(texts[-1])


def test_a_step_that_the_template_marked_stands_after_the_answer(
    page: Page, server: RunningServer
) -> None:
    rank(page, "marking")
    for place, each in enumerate(true_ranking(server.address, "marking", ANSWERS)):
        (step,) = each.score.steps
        text = page.locator(".ranking .text").nth(place).text_content()
        answer, number = text.split("  Step 1: ")
        assert answer == ANSWERS[each.index]
        assert float(number) == pytest.approx(step.score, abs=NEAR)


def test_members_of_an_ensemble_are_a_table(page: Page, server: RunningServer) -> None:
    rank(page, "ensemble")
    table = page.get_by_role("table", name="Members of the ensemble")
    wanted = true_ranking(server.address, "ensemble", ANSWERS)
    for member in range(2):
        row = table.get_by_role("row", name=f"member-{member}")
        values = [float(text) for text in row.get_by_role("cell").all_inner_texts()]
        assert values == pytest.approx([each.score.members[member] for each in wanted], abs=NEAR)
    expect(page.locator(".ranking .hint").first).to_contain_text("spread")


def test_scales_are_those_that_the_model_has(page: Page, server: RunningServer) -> None:
    for model in ("attributes", "process"):
        choose(page, model)
        expect(page.get_by_label("Normalised")).to_be_disabled()
    choose(page, "sequence")
    page.get_by_label("Normalised").check()
    rank(page, "sequence")
    raw = [each.score.score for each in true_ranking(server.address, "sequence", ANSWERS)]
    normalised = [score for _, score in shown_ranking(page)]
    assert normalised == pytest.approx([(score - 0.5) / 2.0 for score in raw], abs=NEAR)
    expect(page.locator("#found")).to_contain_text("normalised (mean +0.500")
    choose(page, "attributes")
    expect(page.get_by_label("Normalised")).not_to_be_checked()


def test_a_conversation_is_asked_as_its_turns(page: Page, server: RunningServer) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "Why?"},
        {"role": "user", "content": "I wonder."},
    ]
    choose(page, "sequence")
    page.get_by_label("Turns of a conversation").check()
    for place, turn in enumerate(turns, start=1):
        if place > 1:
            page.get_by_role("button", name="Add a turn").click()
        page.get_by_label(f"Role of turn {place}").select_option(turn["role"])
        page.get_by_label(f"Turn {place}", exact=True).fill(turn["content"])
    page.get_by_role("button", name="Add a turn").click()
    page.get_by_role("button", name="Remove turn 5").click()
    write_answers(page, ANSWERS)
    page.get_by_role("button", name="Rank the answers").click()
    expect(page.get_by_role("status")).to_contain_text("scored")
    with RewardClient(server.address) as client:
        wanted = client.rank("sequence", turns, ANSWERS).ranking
    assert shown_ranking(page) == [
        (each.index, pytest.approx(each.score.score, abs=NEAR)) for each in wanted
    ]


def test_the_card_says_what_the_server_knows(page: Page, server: RunningServer) -> None:
    with RewardClient(server.address) as client:
        model = client.get_model("process")
    choose(page, "process")
    page.get_by_text("The model's card").click()
    facts = page.locator("#card dl")
    names, values = (facts.locator(tag).all_inner_texts() for tag in ("dt", "dd"))
    card = dict(zip(names, values, strict=True))
    assert card["kind"] == "process"
    assert card["revision"] == model.revision
    assert card["max tokens"] == str(model.max_tokens)
    assert card["step marker"] == STEP
    assert card["step aggregation"] == "min"
    assert card["parameters"] == f"{model.parameters:,}"


def test_aliases_and_revisions_can_be_chosen(browser: Browser, server: RunningServer) -> None:
    """A list as a server gives it in the middle of a roll-out."""
    with browser.new_context() as context:
        real = context.request.get(f"{server.url}/v1/models").json()["models"]
    (known,) = (model for model in real if model["name"] == "sequence")
    old = {**known, "revision": "0" * 64, "current": False, "max_tokens": 7}
    models = [old, {**known, "aliases": ["default"]}]
    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/v1/models", lambda route: route.fulfill(json={"models": models}))
        page.goto(server.url)
        options = page.get_by_label("Name or revision").locator("option")
        expect(options).to_have_text(["sequence@000000000000", "sequence", "default → sequence"])
        choose(page, f"sequence@{'0' * 64}")
        expect(page.locator("#card summary")).to_contain_text("7 tokens")
        choose(page, "default")
        expect(page.locator("#card summary")).to_contain_text(f"{known['max_tokens']} tokens")


def test_markup_in_answers_stays_text(page: Page) -> None:
    hostile = '<img src=x onerror="document.title=1"><script>document.title = 1</script>'
    rank(page, "sequence", [hostile, "Rain."], prompt=hostile)
    expect(page.locator(".ranking .text").filter(has_text=hostile)).to_have_count(1)
    assert page.locator("#found img, #found script").count() == 0
    assert page.title() == "Playground · Guerdon"
