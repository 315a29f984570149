"""The playground as people use it: a real Chromium, and a real server with small models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from tests.support.packages import need_program
from tests.support.sampler import formula_sampler
from tests.support.server import RunningServer, running_server
from tests.support.tiny import CHATML, STEP, TURN_END, tiny_checkpoint

from guerdon.models.manifest import Manifest

from .form import CHROMIUM, STEPS, launched, open_page
from .sampling import running_endpoint, running_gateway

MODELS = ("sequence", "process", "attributes", "marking", "ensemble")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Of a module's: while it lives, no event loop runs in this thread."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A reward server with a model of each kind that the page shows in a way of its own."""
    need_program(*CHROMIUM)
    folder = tmp_path_factory.mktemp("models")
    sequence = tiny_checkpoint(folder / "sequence", "llama")
    Manifest(mean=0.5, std=2.0).write(sequence)
    attributes = tiny_checkpoint(folder / "attributes", "qwen2", num_labels=2)
    Manifest(kind="attributes", attributes={"helpful": 1.0, "long": -0.5}).write(attributes)
    process = tiny_checkpoint(folder / "process", "qwen2", token_classification=True)
    Manifest(kind="process", step_marker=STEP, step_aggregation="min").write(process)
    marks = CHATML.replace(TURN_END, STEP + TURN_END)
    marking = tiny_checkpoint(
        folder / "marking", "qwen2", token_classification=True, chat_template=marks
    )
    Manifest(kind="process", step_marker=STEP).write(marking)
    ensemble = folder / "ensemble"
    for seed in range(2):
        tiny_checkpoint(ensemble / f"member-{seed}", "llama", seed=seed)
    Manifest(kind="ensemble", members=("member-0", "member-1"), aggregation="mean").write(ensemble)
    models = {
        "sequence": sequence,
        "attributes": attributes,
        "process": process,
        "marking": marking,
        "ensemble": ensemble,
    }
    with running_server(models, dtype="float32") as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Page]:
    """The page with its models listed, in a window of its own."""
    with open_page(browser, server.url) as page:
        yield page


@pytest.fixture(scope="package")
def gateway(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A gateway between the reward server and a sampler, with a preset."""
    config = tmp_path_factory.mktemp("gateway") / "gateway.toml"
    config.write_text(
        '[presets.careful]\nbest_of = 6\nstrategy = "soft"\ntemperature = 0.5\ntimeout = 60\n'
    )
    with (
        formula_sampler() as sampler,
        running_gateway(
            sampler=sampler.address,
            reward=[f"{server.address}/{model}" for model in MODELS],
            unranked="first",
            config=config,
        ) as gateway,
    ):
        yield gateway


@pytest.fixture
def sampling(browser: Browser, gateway: RunningServer) -> Iterator[Page]:
    """The gateway's page with its names listed, in a window of its own."""
    with open_page(browser, gateway.url) as page:
        yield page


@pytest.fixture
def stepping(browser: Browser, server: RunningServer) -> Iterator[Page]:
    """The page of a gateway before an endpoint whose answers go in steps."""
    with (
        running_endpoint(STEPS) as endpoint,
        running_gateway(
            endpoint=endpoint,
            endpoint_model="steps",
            reward=[f"{server.address}/process", f"{server.address}/attributes"],
            reward_page=f"{server.url}/",
        ) as gateway,
        open_page(browser, gateway.url) as page,
    ):
        yield page
