"""A gateway's page: the server behind it, steps that people take, and what the API answered."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect
from tests.support.server import RunningServer, flag_list, running_process

from .form import PROMPT


@contextmanager
def running_gateway(
    *, reward: Sequence[str], environment: Mapping[str, str] | None = None, **flags: object
) -> Iterator[RunningServer]:
    """The real `guerdon serve gateway`, in a process of its own, on free ports."""

    def command(ready: Path) -> list[str]:
        found = [sys.executable, "-m", "guerdon.serving", "gateway"]
        for model in reward:
            found += ["--reward", model]
        return found + flag_list({"port": 0, "http_port": 0, "ready_file": ready, **flags})

    with running_process(command, environment or {}) as gateway:
        yield gateway


@contextmanager
def running_endpoint(answers: Sequence[str]) -> Iterator[str]:
    """An OpenAI endpoint that gives these answers, one for each request, over and over; its URL."""
    turns = itertools.cycle(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            with turn:
                message = {"role": "assistant", "content": next(turns)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            used = {"prompt_tokens": 4, "completion_tokens": len(message["content"].split())}
            whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "steps"}
            body = json.dumps({**whole, "choices": [choice], "usage": used}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    turn = threading.Lock()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1"
        finally:
            http.shutdown()
            thread.join()


def fill(page: Page, **fields: object) -> None:
    """Write fields of a request by their names; two underscores stand for a dot."""
    for name, value in fields.items():
        control = page.locator(f"[id='{name.replace('__', '.')}']")
        if control.evaluate("control => control.tagName") == "SELECT":
            control.select_option(str(value))
        else:
            control.fill(str(value))


def sample(page: Page, prompt: str = PROMPT) -> None:
    """Ask for answers, and wait for what comes of it."""
    page.get_by_label("Text of the prompt").fill(prompt)
    page.get_by_role("button", name="Sample and rank").click()
    expect(page.locator("#found")).to_have_attribute("aria-busy", "false")


def sampled(page: Page) -> tuple[dict[str, Any], str]:
    """The request that the page makes, and the stream that answers it."""
    with page.expect_response("**/v1/chat/completions") as caught:
        sample(page)
    return caught.value.request.post_data_json, caught.value.text()


def events(stream: str) -> list[dict[str, Any]]:
    """The JSON of a stream's events."""
    lines = [line for line in stream.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def shown_answers(page: Page) -> list[tuple[int, float]]:
    """Number and score of each answer, in the order that is shown."""
    words = [head.split() for head in page.locator("ol.ranking h3").all_inner_texts()]
    return [(int(each[1]), float(each[-1])) for each in words]


def shown_table(page: Page) -> list[list[str]]:
    """The rows of the table of candidates, as a screen reader reads them."""
    table = page.get_by_role("table", name="All candidates, best first")
    names = table.get_by_role("columnheader").all_inner_texts()
    assert names[:4] == ["Candidate", "Score", "Tokens", "Drawn"]
    found = []
    for row in table.get_by_role("row").all()[1:]:
        cells = row.get_by_role("cell").all_inner_texts()
        assert len(cells) == len(names) - 1
        found.append([row.get_by_role("rowheader").inner_text(), *cells])
    return found
