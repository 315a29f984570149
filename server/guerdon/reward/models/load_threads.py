"""Loads under way: each in a thread of its own, so that none waits for another or the loop.

A load is ended by cancelling it. Its thread stops at its next step; a model that it still
makes is closed at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from guerdon.reward.models.revision import ServedModel
from guerdon.serving.errors import Overloaded

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
