"""Steps that people take on the playground, and what they then see."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.support.packages import need_program
from tests.support.tiny import STEP

from guerdon.client import RewardClient

PROMPT = "What is rain?"
ANSWERS = ("Water that falls from clouds.", "Rain rain rain.", "I am sorry, but I can't help.")
STEPS = (f"1 + 1 = 2{STEP} 2 + 1 = 3{STEP} Done.", f"It is 3.{STEP}")

MILLISECONDS = 60_000
"""How long anything is waited for on a busy machine; nothing needs nearly as long."""
expect.set_options(timeout=MILLISECONDS)


CHROMIUM = ("chromium", "chromium")
"""The program, and Debian's package that has it."""


@contextmanager
def launched() -> Iterator[Browser]:
    """Debian's Chromium."""
    program = need_program(*CHROMIUM)
    # Its sandbox refuses root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=arguments, timeout=MILLISECONDS
        )
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, url: str, **settings: Any) -> Iterator[Page]:
    """The page of a server; fails at its end if a script did, or a policy was broken.

    Args:
        browser: in which a window is opened.
        url: of the server.
        settings: of Playwright's `new_context`.
    """
    with browser.new_context(**settings) as context:
        context.set_default_timeout(MILLISECONDS)
        page, faults = context.new_page(), list[str]()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda line: faults.append(line.text) if "Security Policy" in line.text else None,
        )
        page.goto(url)
        expect(page.get_by_role("status")).not_to_contain_text("Asking")
        yield page
        assert not faults


def choose(page: Page, model: str) -> None:
    """Pick a model by its name."""
    page.get_by_label("Name or revision").select_option(model)


def write_answers(page: Page, answers: Sequence[str]) -> None:
    """Fill as many fields as there are answers."""
    fields = page.locator("#answers textarea")
    while fields.count() < len(answers):
        page.get_by_role("button", name="Add an answer").click()
    while fields.count() > len(answers):
        page.get_by_role("button", name="Remove answer 1").click()
    for place, answer in enumerate(answers):
        page.get_by_label(f"Answer {place + 1}", exact=True).fill(answer)


def rank(page: Page, model: str, answers: Sequence[str] = ANSWERS, prompt: str = PROMPT) -> None:
    """Ask for a ranking, and wait for what comes of it."""
    choose(page, model)
    page.get_by_label("Text of the prompt").fill(prompt)
    write_answers(page, answers)
    page.get_by_role("button", name="Rank the answers").click()
    expect(page.locator("#found")).to_have_attribute("aria-busy", "false")


def shown_ranking(page: Page) -> list[tuple[int, float]]:
    """Place in the request and score of each answer, in the order that is shown."""
    heads = page.locator(".ranking h3").all_inner_texts()
    words = [head.split() for head in heads]
    return [(int(each[1]) - 1, float(each[-1])) for each in words]


def true_ranking(address: str, model: str, answers: Sequence[str]) -> list[Any]:
    """The same answers as gRPC ranks them."""
    with RewardClient(address) as client:
        return list(client.rank(model, PROMPT, answers).ranking)
