"""Loads what an operator names: each in a thread of its own, so that none waits for another.

A load is ended by cancelling it. Its thread stops at its next step; a model that it still
makes is closed at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from guerdon.models import ModelNotFound, resolve_model
from guerdon.reward.judge.judge import Judge
from guerdon.reward.judge.settings import read_key, read_settings
from guerdon.reward.models.revision import ServedModel
from guerdon.reward.types import EngineLost, RewardModel
from guerdon.serving.errors import CheckpointRefused, NotFound, Overloaded, Unavailable
from guerdon.settings import SettingsError

MAX_LOADS = 4
"""Loads at a time, those that were ended and still run to their next step included."""

Check = Callable[[], None]
"""A loader calls it between its steps. Raises `LoadEnded` when nobody wants the model any more."""

Loader = Callable[[str, str, Check], ServedModel]
"""Makes a model of a path or model name and the name to serve it under; blocks, in a thread.

Raises:
    CheckpointRefused, NotFound, LoadEnded, or anything else for a failure of ours.
"""


class LoadEnded(Exception):
    """The load was ended while it ran."""


class LoadThreads:
    """Runs a loader in threads. Used on one event loop."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._threads: list[threading.Thread] = []

    @property
    def running(self) -> int:
        """Threads that load, for whomever."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return len(self._threads)

    async def load(self, path: str, name: str) -> ServedModel:
        """A model; cancelling this ends the load.

        Raises:
            Overloaded: too many loads are under way.
            CheckpointRefused, NotFound, and what else the loader raises.
        """
        if self.running >= MAX_LOADS:
            raise Overloaded(f"{MAX_LOADS} models are being loaded", retry_after=10.0)
        ended = threading.Event()
        loaded = self._start(path, name, ended)
        try:
            return await asyncio.wrap_future(loaded)
        except asyncio.CancelledError:
            ended.set()
            loaded.add_done_callback(_close)
            raise

    def _start(self, path: str, name: str, ended: threading.Event) -> Future[ServedModel]:
        """Load in a thread that the process's end does not wait for: it may take minutes."""
        loaded: Future[ServedModel] = Future()
        loaded.set_running_or_notify_cancel()

        def check() -> None:
            if ended.is_set():
                raise LoadEnded

        def work() -> None:
            try:
                loaded.set_result(self._loader(path, name, check))
            except BaseException as error:
                loaded.set_exception(error)

        thread = threading.Thread(target=work, name="load-model", daemon=True)
        thread.start()
        self._threads.append(thread)
        return loaded


def _close(loaded: Future[ServedModel]) -> None:
    if loaded.exception() is None:
        loaded.result().close()


JUDGE_SUFFIX = ".toml"
"""What the path of a judge's settings ends with."""


def new_loader(load_folder: Callable[[Path, str, Check], RewardModel]) -> Loader:
    """A loader of folders, hub names and embedded names, and of judges by their settings file.

    Args:
        load_folder: loads a folder under a name.
    """

    def load(path: str, name: str, check: Check) -> ServedModel:
        if path.endswith(JUDGE_SUFFIX):
            return load_judge(Path(path).expanduser(), name)
        try:
            folder = resolve_model(path)
        except ModelNotFound as error:
            raise NotFound(str(error)) from error
        check()
        try:
            return load_folder(folder, name, check)
        except EngineLost as error:
            raise Unavailable(str(error)) from error

    return load


def load_judge(file: Path, name: str) -> Judge:
    """The judge that a settings file describes. Its endpoint is not asked.

    Raises:
        NotFound: there is no such file.
        CheckpointRefused: a setting can't be; the text names it.
    """
    if not file.is_file():
        raise NotFound(f"there is no file {str(file)!r}")
    try:
        settings = read_settings(file)
        return Judge(name, settings, read_key(settings))
    except SettingsError as error:
        raise CheckpointRefused(f"the judge {file}: {error}") from error
