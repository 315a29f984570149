"""How the playground tells of errors: the server's sentence, at the field that it is about."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from .form import ANSWERS, STEPS, choose, open_page, rank, shown_ranking, write_answers


def expect_fault(page: Page, control: Locator, sentence: str) -> None:
    """A field is marked, described by a sentence, and has the focus; the sentence is announced."""
    expect(control).to_have_attribute("aria-invalid", "true")
    expect(control).to_have_accessible_description(re.compile(re.escape(sentence)))
    expect(control).to_be_focused()
    expect(page.locator("[aria-invalid]")).to_have_count(1)
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.locator(".ranking")).to_have_count(0)


def test_an_answer_at_fault_is_marked_until_it_is_mended(page: Page) -> None:
    rank(page, "process", [STEPS[0], "no step"])
    expect_fault(
        page,
        page.get_by_label("Answer 2", exact=True),
        "has no step marker '<step>': there is no step to score",
    )
    rank(page, "process", STEPS)
    expect(page.locator("[aria-invalid]")).to_have_count(0)
    expect(page.get_by_role("alert")).to_be_empty()
    assert len(shown_ranking(page)) == 2


def test_a_prompt_that_is_too_long_is_marked_and_can_be_cut(page: Page) -> None:
    rank(page, "sequence", ["Rain.", "Snow."], prompt="word " * 2000)
    expect_fault(page, page.get_by_label("Text of the prompt"), "is too long")
    page.get_by_label("Cut the start").check()
    rank(page, "sequence", ["Rain.", "Snow."], prompt="word " * 2000)
    expect(page.locator(".ranking .hint").first).to_contain_text("of the prompt cut")


def test_a_turn_at_fault_is_marked(page: Page) -> None:
    choose(page, "sequence")
    page.get_by_label("Turns of a conversation").check()
    page.get_by_role("button", name="Add a turn").click()
    page.get_by_label("Turn 1", exact=True).fill("Hi")
    page.get_by_label("Turn 2", exact=True).evaluate(r"field => field.value = '\ud800'")
    write_answers(page, ANSWERS)
    page.get_by_role("button", name="Rank the answers").click()
    expect_fault(page, page.get_by_label("Turn 2", exact=True), "is not valid Unicode")


def test_an_empty_answer_is_not_sent(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    rank_empty = page.get_by_role("button", name="Rank the answers")
    page.get_by_label("Answer 1", exact=True).fill("Rain.")
    rank_empty.click()
    expect_fault(page, page.get_by_label("Answer 2", exact=True), "This answer is empty")
    assert not asked


def test_a_model_that_was_unloaded_meanwhile_is_marked(page: Page) -> None:
    """The request is made to ask for a model that the real server does not have."""

    def ask_for_another(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        route.continue_(post_data=json.dumps({**body, "model": "gone"}))

    page.route("**/v1/rank", ask_for_another)
    rank(page, "sequence")
    expect_fault(page, page.get_by_label("Name or revision"), "gone")


def test_a_token_is_asked_for_and_kept_nowhere(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama")
    environment = {"GUERDON_TOKEN": "sesame"}
    with (
        running_server({"m": folder}, environment=environment, dtype="float32") as server,
        open_page(browser, server.url) as page,
    ):
        token = page.get_by_label("Token, if the server wants one")
        expect_fault(page, token, "token")
        token.fill("wrong")
        token.press("Tab")
        expect(page.get_by_role("alert")).to_contain_text("token")
        token.fill("sesame")
        token.press("Tab")
        expect(page.get_by_role("status")).to_contain_text("1 model loaded")
        rank(page, "m")
        assert len(shown_ranking(page)) == len(ANSWERS)
        assert page.url == f"{server.url}/"
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
        assert page.context.cookies() == []
        page.reload()
        expect(token).to_have_value("")
        expect_fault(page, token, "token")


def test_a_call_is_cancelled_and_another_takes_its_place(page: Page) -> None:
    held: list[Route] = []
    page.route("**/v1/rank", lambda route: held.append(route))
    choose(page, "sequence")
    page.emulate_media(reduced_motion="reduce")
    write_answers(page, ANSWERS)
    page.get_by_label("Answer 1", exact=True).press("Control+Enter")
    expect(page.get_by_role("status")).to_have_text("Scoring 3 answers…")
    expect(page.locator("#found")).to_have_attribute("aria-busy", "true")
    spinner = "getComputedStyle(document.getElementById('status'), '::before').animationName"
    assert page.evaluate(spinner) == "none"
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    page.unroute("**/v1/rank")
    rank(page, "sequence")
    assert len(shown_ranking(page)) == len(ANSWERS)


def test_servers_without_models_or_without_an_answer(page: Page) -> None:
    page.route("**/v1/models", lambda route: route.fulfill(json={"models": []}))
    page.get_by_role("button", name="List the models again").click()
    expect(page.get_by_role("status")).to_have_text("No model is loaded.")
    write_answers(page, ANSWERS)
    page.get_by_role("button", name="Rank the answers").click()
    expect_fault(page, page.get_by_label("Name or revision"), "There is no model to ask")
    for answer, sentence in (
        (lambda route: route.abort(), "The server can't be asked"),
        (lambda route: route.fulfill(status=502, body="<html>"), "no JSON: HTTP 502 Bad Gateway"),
    ):
        page.unroute("**/v1/models")
        page.route("**/v1/models", answer)
        page.get_by_role("button", name="List the models again").click()
        expect(page.get_by_role("alert")).to_contain_text(sentence)
