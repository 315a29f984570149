"""The documentation's pictures of the playground.

The pages, servers and scores are real, but nothing is trained: the reward models' weights are
random, and the gateway stands before an endpoint that gives written answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Page, expect
from tests.support.server import running_server
from tests.support.tiny import STEP, tiny_checkpoint

from guerdon.models.manifest import Manifest

from .form import launched, open_page, rank
from .sampling import fill, running_endpoint, running_gateway, sample

PROMPT = "What is 7 × 6 + 1?"
ANSWERS = (
    f"Seven times six is forty-two.{STEP} Forty-two plus one is 43.{STEP} The answer is 43.",
    f"7 × 6 = 42.{STEP} 42 + 1 = 43.{STEP} So it is 43.{STEP}",
    f"7 × 6 is 48.{STEP} 48 + 1 = 49.{STEP}",
    f"I think it is 43.{STEP}",
)


@contextmanager
def pages() -> Iterator[tuple[str, str]]:
    """Addresses of a reward server's page and of a gateway's."""
    with tempfile.TemporaryDirectory() as name:
        process = tiny_checkpoint(Path(name, "process"), "qwen2", token_classification=True, seed=5)
        Manifest(kind="process", step_marker=STEP, step_aggregation="min").write(process)
        several = tiny_checkpoint(Path(name, "several"), "qwen2", num_labels=3, seed=2)
        weights = {"helpful": 1.0, "correct": 0.5, "long": -0.5}
        Manifest(kind="attributes", attributes=weights).write(several)
        models = {"process": process, "attributes": several}
        with (
            running_server(models, dtype="float32") as server,
            running_endpoint(ANSWERS) as endpoint,
            running_gateway(
                endpoint=endpoint,
                endpoint_model="written",
                reward=[f"{server.address}/{model}" for model in models],
                reward_page=f"{server.url}/",
            ) as gateway,
        ):
            yield server.url, gateway.url


def show_reward(page: Page) -> None:
    """A ranking by the process model."""
    rank(page, "process", ANSWERS, PROMPT)
    expect(page.locator(".step")).to_have_count(8)


def show_gateway(page: Page) -> None:
    """A cascade: close calls by steps, the others by attributes."""
    fill(page, best_of=len(ANSWERS))
    page.get_by_label("Candidates, at most").press("Tab")
    cascade = {"strategy": "cascade", "small_model": "attributes", "margin": 0.8}
    fill(page, **{f"guerdon__{name}": value for name, value in cascade.items()})
    sample(page, PROMPT)
    expect(page.locator(".ranking li")).to_have_count(len(ANSWERS))


def draw_playground(name: Literal["reward", "gateway"], to: Path) -> None:
    """A picture of a server's page after a ranking, in few colours: the repository stays small."""
    size = {"width": 1200, "height": 900}
    with pages() as (reward, gateway), launched() as browser:
        url, show = (reward, show_reward) if name == "reward" else (gateway, show_gateway)
        with open_page(browser, url, color_scheme="light", viewport=size) as page:
            show(page)
            page.screenshot(path=to, full_page=True)
    with Image.open(to) as whole:
        whole.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(to, optimize=True)
