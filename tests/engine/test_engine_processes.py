"""The keeper of engine processes, with engines that do what no real one can be brought to do."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import tiny_checkpoint

from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.engine_process import messages, remote
from guerdon.reward.engine_process.host import own_share
from guerdon.reward.engine_process.remote import EngineProcesses
from guerdon.reward.types import (
    ComputeMode,
    DeviceLost,
    EngineLost,
    ModelInfo,
    ModelKind,
    ScoreItem,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused

ITEM = ScoreItem("Which one?", ("This one.",))


def info_of(folder: Path) -> ModelInfo:
    checkpoint = inspect_checkpoint(folder)
    return ModelInfo(
        name="m",
        revision=checkpoint.revision,
        kind=ModelKind.SEQUENCE,
        architecture=checkpoint.architecture,
        max_tokens=checkpoint.max_tokens,
        dtype="float32",
        device="cpu",
        compute_mode=ComputeMode.PACKED,
    )


class StuckEngines:
    """A spawner of engines that load models and never answer a batch, nor end when killed.

    Args:
        answer: to a load of a folder.
    """

    def __init__(self, answer: Callable[[Path], bytes]) -> None:
        self._answer = answer
        self._kept: list[Any] = []
        self.asked = threading.Semaphore(0)
        """Released for each batch that is asked for."""
        self.spawned = 0

    def spawn(self, engine: int) -> tuple[socket.socket, int]:
        self.spawned += 1
        channel, theirs = socket.socketpair()
        victim = subprocess.Popen(["sleep", "600"])
        self._kept += [theirs, victim]
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return channel, victim.pid

    def close(self) -> None:
        for each in self._kept:
            if isinstance(each, subprocess.Popen):
                each.kill()
                each.wait()
            else:
                each.close()

    def _serve(self, channel: socket.socket) -> None:
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
            except OSError:
                return
            if not descriptors:
                return
            connection = Connection(descriptors[0])
            self._kept.append(connection)
            asked, _ = messages.unpack(connection.recv_bytes())
            connection.send_bytes(self._answer(Path(asked["folder"])))
            threading.Thread(target=self._ask, args=(connection,), daemon=True).start()

    def _ask(self, connection: Connection) -> None:
        try:
            connection.recv_bytes()
        except (EOFError, OSError):
            return
        self.asked.release()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m", "llama")


@pytest.fixture
def stuck() -> Iterator[StuckEngines]:
    spawner = StuckEngines(lambda folder: messages.pack_info(info_of(folder)))
    yield spawner
    spawner.close()


@pytest.fixture
def engines(stuck: StuckEngines) -> Iterator[EngineProcesses]:
    keeper = EngineProcesses(stuck, 1)  # type: ignore[arg-type]
    yield keeper
    for model in list(keeper._models):
        model.close()
    keeper.close()


def test_an_engine_that_can_not_even_be_killed_is_waited_for_no_more(
    folder: Path, stuck: StuckEngines, engines: EngineProcesses
) -> None:
    model = engines.load(folder, "m", lambda: None)
    items = [model.encode(ITEM, Truncation.REJECT)]
    with ThreadPoolExecutor(1) as pool:
        scores = pool.submit(model.score, items)
        assert stuck.asked.acquire(timeout=60)
        engines.kill(0)
        with pytest.raises(EngineLost):
            scores.result(60)
    assert engines.lost(0)


@pytest.mark.parametrize(
    ("error", "said", "attempts"),
    [
        (
            CheckpointRefused("its files are gone"),
            "m can't be loaded again: its files are gone",
            1,
        ),
        (DeviceLost("cuda:0 failed"), "engine 0 ends whenever it is started", remote.ATTEMPTS),
    ],
)
def test_an_engine_that_can_not_load_its_models_again_is_given_up(
    error: Exception,
    said: str,
    attempts: int,
    folder: Path,
    stuck: StuckEngines,
    engines: EngineProcesses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "MAX_DELAY", 0.0)
    engines.load(folder, "m", lambda: None)
    engines.kill(0)
    stuck._answer = lambda folder: messages.pack_error(error)
    with pytest.raises(DeviceLost, match=said):
        engines.restore(0)
    assert stuck.spawned == 1 + attempts


def test_what_is_loaded_elsewhere_must_be_what_was_read_here(
    folder: Path, stuck: StuckEngines, engines: EngineProcesses
) -> None:
    stuck._answer = lambda folder: messages.pack_info(
        dataclasses.replace(info_of(folder), revision="another")
    )
    with pytest.raises(CheckpointRefused, match="changed while it was loaded"):
        engines.load(folder, "m", lambda: None)


@pytest.mark.parametrize("engines", [2, 3, 7])
def test_engines_share_the_cores(engines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each core belongs to one engine, and each engine has one at least."""
    held: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 5, 8})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: held.append(set(cores)))
    settings = EngineSettings(device="cpu", devices=engines)
    shares = [own_share(settings, number) for number in range(engines)]
    assert set.union(*held) == {1, 2, 3, 5, 8}
    assert all(share.threads == len(cores) for share, cores in zip(shares, held, strict=True))
    if engines <= 5:
        assert sum(map(len, held)) == 5
