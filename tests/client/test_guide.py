"""Every Python example of the client's pages runs as it stands, but for the servers' addresses."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon import client
from guerdon.client import AsyncRewardClient, Item, Retry, RewardClient
from guerdon.client.testing import FakePolicyServer, FakeRewardServer

DOCS = Path(__file__).parents[2] / "docs"


def examples(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


FIRST, BEST, LOOP, STREAM, DRAW, WEIGHTS, TESTING, TESTING_POLICY = examples("client.md")


def run_async(example: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run an example that awaits; what it assigns comes back."""
    code = f"async def example():\n{textwrap.indent(example, '    ')}\n    return locals()"
    exec(code, names)
    found: dict[str, Any] = asyncio.run(names["example"]())
    return found


def test_synchronous_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeRewardServer(models=["helpful"]) as server:
        exec(FIRST.replace("localhost:50051", server.target), {})
        assert capsys.readouterr().out == "[[18.0, 4.0]]\n"
        with RewardClient(server.target) as rewards:
            names = {"rewards": rewards, "prompt": "q", "answers": ["a", "the longest", "bb"]}
            exec(BEST, names)
        assert capsys.readouterr().out == "the longest 11.0\n"


def test_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    asking, testing = examples("quickstart-score.md")
    with FakeRewardServer(models=["helpful"]) as server:
        exec(asking.replace("localhost:50051", server.target), {})
    assert capsys.readouterr().out == "[18.0, 4.0]\n0 18.0\n"
    exec(testing, {})


def test_asynchronous_examples() -> None:
    with FakeRewardServer(models=["helpful"]) as server:
        names: dict[str, Any] = {
            "AsyncRewardClient": AsyncRewardClient,
            "Retry": Retry,
            "items": [Item("q", ["a", "bb"]), Item("r", ["ccc"])],
        }
        loop = re.sub(r'"10\.0\.0\.\d:50051"', f'"{server.target}"', LOOP)
        assert run_async(loop, names)["result"].scores == [[1.0, 2.0], [3.0]]
        saved: dict[int, tuple[float, ...]] = {}
        stream = f'async with AsyncRewardClient("{server.target}") as rewards:\n'
        stream += textwrap.indent(STREAM, "    ")
        run_async(stream, {**names, "model": "helpful", "save": saved.__setitem__})
        assert {place: list(values) for place, values in saved.items()} == {0: [1, 2], 1: [3]}


def test_examples_of_the_sampler() -> None:
    with FakePolicyServer() as server:
        kept: list[tuple[Any, ...]] = []
        weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
        names = {**vars(client), "keep": lambda *values: kept.append(values), "weights": weights}
        run_async(DRAW.replace("localhost:50052", server.target), names)
        assert sorted(item for item, *_ in kept) == [0] * 4 + [1] * 4
        update = f'async with AsyncPolicyClient("{server.target}") as policy:\n'
        update += textwrap.indent(WEIGHTS, "    ")
        names |= {"token_ids": [3, 4], "logprobs": [-0.5]}
        assert run_async(update, names)["report"].version == 4
        assert list(server.updates[0].tensors) == ["a", "b"]


@pytest.mark.parametrize("example", [TESTING, TESTING_POLICY], ids=["rewards", "policy"])
def test_the_example_of_a_users_test_passes(tmp_path: Path, example: str) -> None:
    (tmp_path / "test_example.py").write_text(example, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
