"""The playground for everybody: by keys alone, by a screen reader, on a narrow screen, in the dark.

And for nobody else: it asks this server alone, and runs no script but its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from tests.support.server import RunningServer

from .conftest import MODELS
from .form import ANSWERS, PROMPT, STEPS, choose, open_page, rank, shown_ranking
from .sampling import sample


def check_accessibility(page: Page) -> None:
    """No fault that axe finds; it sees contrast, names, roles, order of headings and more."""
    found = Axe().run(page).response
    assert not found["violations"], [
        (fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found["violations"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(browser: Browser, server: RunningServer, scheme: str) -> None:
    # Only here may a script be added to the page: axe's own.
    with open_page(browser, server.url, color_scheme=scheme, bypass_csp=True) as page:
        check_accessibility(page)
        rank(page, "attributes")
        page.get_by_text("The model's card").click()
        page.get_by_label("Turns of a conversation").check()
        check_accessibility(page)
        page.get_by_label("One text").check()
        rank(page, "process", STEPS)
        assert len(shown_ranking(page)) == len(STEPS)
        check_accessibility(page)
        rank(page, "process", ["no step"])
        expect(page.locator("[aria-invalid]")).to_have_count(1)
        check_accessibility(page)


def test_axe_would_find_faults(browser: Browser, server: RunningServer) -> None:
    with open_page(browser, server.url, bypass_csp=True) as page:
        page.evaluate("document.querySelector('label[for=model]').remove()")
        with pytest.raises(AssertionError, match="select-name"):
            check_accessibility(page)


def test_light_and_dark_are_different(browser: Browser, server: RunningServer) -> None:
    shown = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, server.url, color_scheme="light") as page:
        light = page.evaluate(shown)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(shown) != light


def walked(page: Page, texts: Mapping[str, str]) -> list[str]:
    """What Tab reaches, by name, until the window ends; each has an outline.

    Args:
        page: from whose heading it begins.
        texts: typed on the way, by the name of a field.
    """
    page.locator("h1").click()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(() => { const e = document.activeElement; return e === document.body ? ''"
            " : e.ariaLabel || e.labels?.[0]?.textContent.trim() || e.textContent.trim(); })()"
        )
        if name in reached or not name:
            break
        reached.append(name)
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) == "solid", name
        if name in texts:
            page.keyboard.type(texts[name])
    return reached


def test_everything_is_reached_and_done_by_keys(page: Page) -> None:
    choose(page, "attributes")
    answers = {f"Answer {i}": ANSWERS[i - 1] for i in (1, 2)}
    reached = walked(page, {"Text of the prompt": PROMPT, **answers})
    order = [
        "The API, route by route",
        *("Name or revision", "Token, if the server wants one", "List the models again"),
        *("One text", "Text of the prompt"),
        *("Remove answer 1", "Answer 1", "Remove answer 2", "Answer 2", "Add an answer"),
        *("Sigmoid", "Cut the start of a prompt that is too long", "Rank the answers"),
    ]
    assert [name for name in reached if name in order] == order
    page.get_by_label("Answer 2", exact=True).focus()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("2 answers scored")
    expect(page.get_by_label("Answer 2", exact=True)).to_be_focused()


def test_everything_on_the_gateways_page_is_reached_and_done_by_keys(sampling: Page) -> None:
    reached = walked(sampling, {"Text of the prompt": PROMPT, "Seed": "7"})
    cards = [name for name in reached if name.startswith("Card of the reward model")]
    assert len(cards) == len(MODELS)
    order = [
        "The API, route by route",
        *("Name or preset", "Token, if the server wants one", "List the models again", *cards),
        *("One text", "Text of the prompt"),
        *("Candidates, at most", "Answers that come back", "Strategy", "Reward model"),
        *("Seconds for the whole call, at most", "Temperature", "Top p"),
        *("Most tokens of a candidate", "Seed", "Sample and rank"),
    ]
    assert [name for name in reached if name in order] == order
    first = sampling.locator("summary").first
    first.press("Enter")
    expect(sampling.locator("details").first.locator("dl")).to_be_visible()
    seed = sampling.get_by_label("Seed")
    expect(seed).to_have_value("7")
    seed.focus()
    sampling.keyboard.press("Control+Enter")
    expect(sampling.get_by_role("status")).to_contain_text("8 candidates, 8 scored")
    expect(seed).to_be_focused()


def test_focus_stays_where_rows_come_and_go(page: Page) -> None:
    page.get_by_role("button", name="Add an answer").press("Enter")
    third = page.get_by_label("Answer 3", exact=True)
    expect(third).to_be_focused()
    third.fill("third")
    page.get_by_role("button", name="Remove answer 2").press("Enter")
    expect(page.get_by_label("Answer 2", exact=True)).to_be_focused()
    expect(page.get_by_label("Answer 2", exact=True)).to_have_value("third")
    page.get_by_role("button", name="Remove answer 2").press("Enter")
    expect(page.get_by_label("Answer 1", exact=True)).to_be_focused()
    expect(page.get_by_role("button", name="Remove answer 1")).to_be_hidden()


def test_a_narrow_screen_needs_no_scrolling_sideways(
    browser: Browser, server: RunningServer
) -> None:
    with open_page(browser, server.url, viewport={"width": 320, "height": 640}) as page:
        page.get_by_text("The model's card").click()
        rank(page, "attributes", [*ANSWERS, "unbroken" * 20])
        expect(page.locator(".ranking li")).to_have_count(4)
        expect(page.locator("#results-heading")).to_be_in_viewport()
        page.get_by_label("Turns of a conversation").check()
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        assert page.evaluate("document.querySelector('.scroller').scrollWidth") > 256


def test_it_asks_this_server_alone(
    browser: Browser, server: RunningServer, gateway: RunningServer
) -> None:
    for url, ranks, path in (
        (server.url, lambda page: rank(page, "process", STEPS), "/v1/rank"),
        (gateway.url, sample, "/v1/chat/completions"),
    ):
        with browser.new_context() as context:
            page, asked = context.new_page(), list[str]()
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(url)
            expect(page.locator("#model option")).not_to_have_count(0)
            ranks(page)
            expect(page.locator("ol.ranking > li")).not_to_have_count(0)
        assert all(each.startswith(f"{url}/") for each in asked)
        assert f"{url}{path}" in asked


def test_no_other_script_runs_and_no_text_becomes_markup(page: Page) -> None:
    inline = """() => {
        const script = document.createElement("script");
        script.text = "document.title = 'run'";
        document.body.append(script);
    }"""
    with pytest.raises(Exception, match="TrustedScript"):
        page.evaluate(inline)
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<p>x</p>'")
    assert page.title() == "Playground · Guerdon"


def test_headers_of_every_file(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url) as http:
        for path in ("/", "/playground/rank.js", "/playground/page.css"):
            reply = http.get(path)
            assert reply.status_code == 200
            policy = reply.headers["content-security-policy"].split("; ")
            assert "default-src 'none'" in policy
            assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} <= {*policy}
            assert "unsafe" not in reply.headers["content-security-policy"]
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "no-referrer"
        for path in ("/playground/pages.py", "/playground/..%2f__init__.py", "/playground/"):
            assert http.get(path).status_code == 404
