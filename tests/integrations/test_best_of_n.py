"""Drawing n answers and ranking them, with the fake reward server."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from guerdon.client import AsyncRewardClient, InvalidArgument, Retry, Unavailable
from guerdon.client.testing import FakeRewardServer
from guerdon.integrations.best_of_n import best_of_n

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "best-of-n.md"
TEXTS = ["bb", "a", "dddd", "cc"]


@pytest.fixture
def fake() -> Iterator[FakeRewardServer]:
    with FakeRewardServer() as server:
        yield server


def drawing(texts: list[Any]) -> Any:
    async def generate(prompt: Any, n: int) -> list[Any]:
        return texts[:n]

    return generate


async def test_candidates_come_best_first_and_ties_as_drawn(fake: FakeRewardServer) -> None:
    async with AsyncRewardClient(fake.target) as rewards:
        found = await best_of_n(drawing(TEXTS), rewards, "fake", "q", n=4, priority="batch")
    assert [c.text for c in found] == ["dddd", "bb", "cc", "a"]
    assert [c.score.score for c in found] == [4.0, 2.0, 2.0, 1.0]
    (call,) = fake.calls
    assert (call.method, call.request.options.priority) == ("Rank", 2)


@pytest.mark.parametrize(
    ("texts", "n", "reason"),
    [
        ([], 4, "drew 0 answers where 4"),
        (["a", None], 4, "must be text"),
        (TEXTS, 0, "n: is 0"),
    ],
)
async def test_what_is_no_answer_is_refused(
    fake: FakeRewardServer, texts: list[Any], n: int, reason: str
) -> None:
    async with AsyncRewardClient(fake.target) as rewards:
        with pytest.raises(InvalidArgument, match=reason):
            await best_of_n(drawing(texts), rewards, "fake", "q", n=n)
    assert not fake.calls


async def test_more_answers_than_asked_for_are_refused(fake: FakeRewardServer) -> None:
    async def generate(prompt: str, n: int) -> list[str]:
        return TEXTS

    async with AsyncRewardClient(fake.target) as rewards:
        with pytest.raises(InvalidArgument, match="drew 4 answers where 2"):
            await best_of_n(generate, rewards, "fake", "q", n=2)


async def test_one_text_in_the_place_of_a_list_is_refused(fake: FakeRewardServer) -> None:
    async def generate(prompt: str, n: int) -> str:
        return "Rain"

    async with AsyncRewardClient(fake.target) as rewards:
        with pytest.raises(InvalidArgument, match="drew one text"):
            await best_of_n(generate, rewards, "fake", "q", n=8)
    assert not fake.calls


async def test_an_error_of_the_server_is_raised(fake: FakeRewardServer) -> None:
    fake.fail(grpc.StatusCode.UNAVAILABLE)
    async with AsyncRewardClient(fake.target, retry=Retry(attempts=1)) as rewards:
        with pytest.raises(Unavailable):
            await best_of_n(drawing(TEXTS), rewards, "fake", "q", n=4)


def test_the_example_of_the_page(fake: FakeRewardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    async def create(**request: Any) -> Any:
        asked.update(request)
        texts = [SimpleNamespace(message=SimpleNamespace(content=text)) for text in TEXTS]
        return SimpleNamespace(choices=texts)

    chat = SimpleNamespace(completions=SimpleNamespace(create=create))
    stand_in = SimpleNamespace(AsyncOpenAI=lambda: SimpleNamespace(chat=chat))
    monkeypatch.setitem(sys.modules, "openai", stand_in)  # type: ignore[arg-type]
    fake.add_revision("helpful", "rev-1")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("localhost:50051", fake.target), names)
    assert asyncio.run(names["answer"]("q")) == ("dddd", 4.0)
    assert asked == {"model": "my-policy", "messages": [{"role": "user", "content": "q"}], "n": 8}
