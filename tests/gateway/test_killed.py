"""SIGKILL for each of the programs while candidates are drawn: what callers get, and after."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.support.formula_engine import length_of, token_of
from tests.support.gateway import gateway_process
from tests.support.load import metrics, total
from tests.support.ports import free_port
from tests.support.sampler import formula_sampler
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import Item, RewardClient

from .support import QUESTION

pytestmark = pytest.mark.slow

FREE, HELD = 1, 7
"""Seeds: candidates of the second wait in the sampler, when the two shorter ones have ended."""
BEST_OF, ENDED = 4, 2
SECONDS = 60.0
"""More than any call may take; a call that hangs fails the test."""
PROMPT = [len(word) for word in QUESTION[0]["content"].split()]
WAYS = [(gateway, stream) for gateway in ("refuse", "first") for stream in (False, True)]
"""The gateways, by what they do where no ranking is to be had; answers whole and streamed."""


def candidate(index: int, seed: int) -> str:
    """What the sampler's formula draws."""
    places = range(length_of(PROMPT, index) - 1)
    return " ".join(str(token_of(0, PROMPT, index, place, seed)) for place in places)


class Programs:
    """A sampler, a reward server and two gateways, which keep their ports when started again."""

    def __init__(self, model: Path, stack: ExitStack) -> None:
        self._model = model
        self._stack = stack
        self.ports = {name: free_port() for name in ("sampler", "rewards", "refuse", "first")}
        self.running: dict[str, RunningServer] = {}
        with ThreadPoolExecutor(len(self.ports)) as starting:
            list(starting.map(self.start, self.ports))

    def start(self, name: str) -> None:
        self.running[name] = self._stack.enter_context(self._process(name))

    def _process(self, name: str) -> AbstractContextManager[RunningServer]:
        port = self.ports[name]
        if name == "sampler":
            return formula_sampler(port=port, environment={"FORMULA_HELD_SEED": str(HELD)})
        if name == "rewards":
            return running_server({"m": self._model}, port=port)
        return gateway_process(
            sampler=f"127.0.0.1:{self.ports['sampler']}",
            reward=[f"127.0.0.1:{self.ports['rewards']}/m"],
            http_port=port,
            unranked=name,
            best_of=BEST_OF,
            comment_seconds=0.05,
        )

    def client(self, gateway: str) -> openai.OpenAI:
        """OpenAI's own client, unmodified."""
        url = f"http://127.0.0.1:{self.ports[gateway]}/v1/"
        return openai.OpenAI(base_url=url, api_key="key", max_retries=0, timeout=SECONDS)

    def ask(self, gateway: str, *, stream: bool, seed: int, n: int = 1) -> tuple[list[str], Any]:
        """The texts of an answer, and its object `guerdon`."""
        with self.client(gateway) as client:
            reply: Any = client.chat.completions.create(
                model="policy", messages=QUESTION, stream=stream, seed=seed, n=n
            )
            if not stream:
                return [choice.message.content for choice in reply.choices], reply.guerdon
            chunks = list(reply)
            pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
            return ["".join(pieces)], chunks[-1].guerdon

    def held(self, pool: ThreadPoolExecutor) -> list[Future[tuple[list[str], Any]]]:
        """Calls in each of the ways, of which some candidates are scored and others still drawn."""
        scored = self.scored()
        calls = [pool.submit(self.ask, name, stream=stream, seed=HELD) for name, stream in WAYS]
        wanted = len(calls) * (BEST_OF - ENDED), scored + len(calls) * ENDED
        until(lambda: (self.drawn(), self.scored()) == wanted)
        return calls

    def drawn(self) -> float:
        """Candidates that the sampler draws now."""
        return metrics(self.running["sampler"].url)["guerdon_sampler_running"]

    def scored(self) -> float:
        """Answers that the reward server has scored."""
        return total(metrics(self.running["rewards"].url), "guerdon_sequences_total")

    def check_ranked(self, gateway: str) -> None:
        """Calls are answered and ranked, as soon as channels are connected again."""
        answers: list[tuple[list[str], Any]] = []

        def answered() -> bool:
            with contextlib.suppress(openai.InternalServerError):
                answers.append(self.ask(gateway, stream=False, seed=FREE, n=BEST_OF))
            return bool(answers and answers[-1][1]["ranked"])

        until(answered)
        texts = answers[-1][0]
        assert sorted(texts) == sorted(candidate(i, FREE) for i in range(BEST_OF))
        with RewardClient(self.running["rewards"].address) as rewards:
            scores = rewards.score("m", [Item(QUESTION, texts)]).scores[0]
        assert list(scores) == sorted(scores, reverse=True)


def until(happened: Any) -> None:
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    model = tiny_checkpoint(tmp_path_factory.mktemp("rewards") / "m", "llama")
    with ExitStack() as stack:
        yield Programs(model, stack)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(len(WAYS)) as made:
        yield made


def test_a_killed_sampler_is_an_error_though_half_of_the_candidates_are_scored(
    programs: Programs, pool: ThreadPoolExecutor
) -> None:
    calls = programs.held(pool)
    programs.running["sampler"].kill()
    for (_gateway, stream), call in zip(WAYS, calls, strict=True):
        check_away(call.exception(SECONDS), "the sampler is away", stream=stream)
    programs.start("sampler")
    for gateway in ("refuse", "first"):
        programs.check_ranked(gateway)


def test_a_killed_reward_server_is_an_error_or_candidate_0_that_says_so(
    programs: Programs, pool: ThreadPoolExecutor
) -> None:
    calls = programs.held(pool)
    programs.running["rewards"].kill()
    programs.running["sampler"].process.send_signal(signal.SIGUSR2)
    for (gateway, stream), call in zip(WAYS, calls, strict=True):
        if gateway == "refuse":
            error = call.exception(SECONDS)
            check_away(error, "the rewards of m are away", stream=stream)
            continue
        texts, report = call.result(SECONDS)
        assert texts == [candidate(0, HELD)]
        assert report["ranked"] is False
        assert report["reason"].startswith("the rewards of m are away")
        assert report["gain"] is None
    programs.start("rewards")
    for gateway in ("refuse", "first"):
        programs.check_ranked(gateway)


def test_a_killed_gateway_breaks_its_calls_off_and_stops_what_was_drawn_for_them(
    programs: Programs, pool: ThreadPoolExecutor
) -> None:
    *broken, whole, streamed = programs.held(pool)
    programs.running["refuse"].kill()
    for call in broken:
        assert isinstance(call.exception(SECONDS), openai.APIConnectionError)
    until(lambda: programs.drawn() == 2 * (BEST_OF - ENDED))
    programs.running["sampler"].process.send_signal(signal.SIGUSR2)
    assert whole.result(SECONDS)[1]["ranked"]  # the other gateway's calls know nothing of it
    assert streamed.result(SECONDS)[1]["ranked"]
    programs.start("refuse")
    programs.check_ranked("refuse")


def check_away(error: BaseException | None, why: str, *, stream: bool) -> None:
    """Before an answer has begun an error is a status; in a stream that has begun, an event."""
    assert isinstance(error, openai.APIError)
    assert why in str(error)
    if not stream:
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 503
    assert isinstance(error.body, dict)
    assert error.body["type"] == "ServiceUnavailableError"
