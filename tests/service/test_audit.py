"""What the log says of refused tokens, administration, and calls."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.in_process import until

from guerdon.serving.logs import RateLimit, set_up_logging
from guerdon.v1 import admin_pb2

from .conftest import start_server
from .messages import score_request

TOKEN = "a-secret-token"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The events of a kind that were logged."""
    caplog.set_level(logging.INFO, "guerdon.audit")
    caplog.set_level(logging.INFO, "guerdon.access")

    def found(kind: str) -> list[dict[str, str]]:
        texts = [r.getMessage() for r in caplog.records if r.name.startswith("guerdon.a")]
        return [json.loads(t.removeprefix(kind)) for t in texts if t.startswith(f"{kind} ")]

    return found


async def test_refusals_are_logged_without_the_token_and_not_without_end(
    tmp_path: Path, lines: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The limit is the process's: other tests may just have been refused as often as is logged.
    fresh = RateLimit(most=10, seconds=10.0)
    monkeypatch.setattr(logging.getLogger("guerdon.audit.refused"), "filters", [fresh])
    (tmp_path / "token").write_text(TOKEN)
    async with start_server(token_file=tmp_path / "token") as served:
        for i in range(30):
            wrong = (("authorization", f"Bearer {TOKEN}-{i}"),)
            with pytest.raises(grpc.aio.AioRpcError):
                await served.rewards.Score(score_request(), metadata=wrong)
        body = {"model": "m", "items": []}
        headers = {"authorization": f"Bearer {TOKEN}x"}
        assert (await served.http.post("/v1/score", json=body, headers=headers)).status_code == 401
    refused = lines("refused")
    assert 1 <= len(refused) <= 30
    assert (refused[0]["method"], refused[0]["code"]) == ("Score", "UNAUTHENTICATED")
    assert "127.0.0.1" in refused[0]["peer"]
    assert TOKEN not in caplog.text


async def test_administration_is_logged_with_who_what_and_outcome(lines: Any) -> None:
    async with start_server() as served:
        load = admin_pb2.LoadModelRequest(name="new", path="second\nforged", promote=True)
        await served.admin.LoadModel(load)
        with pytest.raises(grpc.aio.AioRpcError):
            await served.admin.UnloadModel(admin_pb2.UnloadModelRequest(name="nobody"))
        await until(lambda: len(lines("admin")) == 2)
    loaded, unloaded = lines("admin")
    assert loaded["method"] == "LoadModel"
    assert loaded["code"] == "OK"
    assert (loaded["name"], loaded["path"]) == ("new", "second\nforged")
    assert loaded["caller"] == "anonymous"
    assert (unloaded["method"], unloaded["code"]) == ("UnloadModel", "NOT_FOUND")


async def test_every_call_is_logged_on_request(lines: Any) -> None:
    async with start_server() as served:
        await served.rewards.Score(score_request())
        await until(lambda: len(lines("call")) == 1)
    (call,) = lines("call")
    assert (call["method"], call["code"], call["caller"]) == ("Score", "OK", "anonymous")
    assert float(call["seconds"]) > 0


def test_the_audit_log_is_kept_whatever_the_level() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_up_logging("error")
        assert logging.getLogger("guerdon.audit").isEnabledFor(logging.INFO)
        assert not logging.getLogger("guerdon.access").isEnabledFor(logging.INFO)
        set_up_logging("error", access=True)
        assert logging.getLogger("guerdon.access").isEnabledFor(logging.INFO)
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        for name in ("guerdon", "guerdon.audit", "guerdon.access"):
            logging.getLogger(name).setLevel(logging.NOTSET)
