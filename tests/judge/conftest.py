"""A reward server with a judge that asks a scripted endpoint."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.service.conftest import Harness, start_server
from tests.service.fake import FakeLoader

from guerdon.reward.models.loader import load_judge

from .endpoint import ScriptedEndpoint, replies, scripted


class JudgeLoader(FakeLoader):
    """Loads judges as the server does, and fake models beside them."""

    def __call__(self, path: str, name: str, check: Callable[[], None]) -> Any:
        if path.endswith(".toml"):
            return load_judge(Path(path), name)
        return super().__call__(path, name, check)


def write_settings(path: Path, url: str, extra: str = "", **settings: Any) -> Path:
    """A judge's settings file; `extra` is TOML below it."""
    values = {"url": url, "model": "judge-1", **settings}
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    path.write_text(lines + extra)
    return path


StartJudge = Callable[..., AbstractAsyncContextManager[Harness]]


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    """It says 7; tests give it other scripts."""
    with scripted(replies("It is brief.\nScore: 7")) as found:
        yield found


@pytest.fixture
def judged(endpoint: ScriptedEndpoint, tmp_path: Path) -> StartJudge:
    """Starts a server whose model `j` asks the endpoint."""

    @asynccontextmanager
    async def start(
        extra: str = "", server: dict[str, Any] | None = None, **settings: Any
    ) -> AsyncIterator[Harness]:
        file = write_settings(tmp_path / "judge.toml", endpoint.url, extra, **settings)
        models = {"j": str(file), "m": "first"}
        async with start_server(JudgeLoader(), models=models, **(server or {})) as harness:
            yield harness

    return start
