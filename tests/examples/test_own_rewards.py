"""The rewards of one's own that examples/rewards begins with give what they say."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.test_own_functions import group, wait_until
from tests.support.command import environment
from tests.support.ports import free_port

from guerdon.trainer.common.services.credentials import Credentials
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.rewards import RewardSource

REWARDS = Path(__file__).resolve().parents[2] / "examples" / "rewards"
TEXTS = ("short", "word " * 40, "so <answer> 42 </answer>", "please")


async def rewards(verifier: str, *, token: str | None = None, **row: Any) -> list[float]:
    credentials = Credentials(verifier_token=token)
    made = RewardSource((), (verifier,), patience=9, request_timeout=60, credentials=credentials)
    try:
        await made.start()
        return await made.totals(group(*TEXTS, **row))
    finally:
        await made.close()


@pytest.mark.parametrize("text", ["Why?", None])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [("brief", [1, 0.5, 1, 1]), ("tagged", [0, 0, 1, 0]), ("judged", [0, 0, 0, 1])],
)
async def test_functions(
    monkeypatch: pytest.MonkeyPatch, name: str, wanted: list[float], text: str | None
) -> None:
    monkeypatch.chdir(REWARDS)
    assert await rewards(f"my_rewards:{name}", text=text, extra={"answer": 42}) == wanted


def is_open(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def service() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, str(REWARDS / "service.py"), "--port", str(port)]
    with subprocess.Popen(command, env=environment(REWARD_TOKEN="let-me-judge")) as process:
        try:
            wait_until(lambda: is_open(port) or process.poll() is not None)
            yield f"http://localhost:{port}/score"
        finally:
            process.kill()


async def test_a_service(service: str) -> None:
    assert await rewards(service, token="let-me-judge") == [1, 0.5, 1, 1]
    with pytest.raises(ServiceRefused, match="HTTP 401"):
        await rewards(service, token="another")
