"""What runs in the engine's process: it loads models and computes what it is sent.

The server's process opens a channel, and through it two connections for each model. On one it
asks for a load and then for batches, on the other for batches that go between the layers of
others. When they close, that ends the load, or frees the model; when the channel closes, as it does
when the server dies, the process ends at once.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from guerdon.models import ManifestError
from guerdon.models.devices import DeviceError, has_gpu
from guerdon.reward.engine.malloc import keep_freed_memory
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.engine_process import messages
from guerdon.reward.engine_process.compute_thread import ComputeThread
from guerdon.reward.kinds import load_model
from guerdon.reward.types import RewardModel
from guerdon.serving.errors import CheckpointRefused

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _LoadEnded(Exception):
    """Nobody wants the model any more."""


class Host:
    """Loads and computes the models of one engine's process.

    Args:
        engine: its number, which says what device or which cores are its own.
    """

    def __init__(self, settings: EngineSettings, engine: int) -> None:
        self._settings = own_share(settings, engine)
        self._computing = ComputeThread()
        self._making = threading.Lock()
        """Making a model needs memory and all cores, and `transformers` sets torch's default
        data type for the whole process meanwhile."""

    def run(self, channel: socket.socket) -> None:
        """Take connections of models until the channel is closed, then end the process."""
        keep_freed_memory()
        channel.sendall(os.getpid().to_bytes(4, "little"))
        while True:
            try:
                _, (usual, urgent), _, _ = socket.recv_fds(channel, 1, 2)
            except (OSError, ValueError):
                os._exit(0)
            connections = (Connection(usual), Connection(urgent))
            threading.Thread(target=self._serve, args=connections, daemon=True).start()

    def _serve(self, usual: Connection, urgent: Connection) -> None:
        with usual, urgent, suppress(EOFError, OSError, _LoadEnded):
            model = _in_new_thread(lambda: self._load(usual))
            if model is None:
                return
            preempting = threading.Thread(
                target=self._answer, args=(urgent, model, self._computing.run_urgent), daemon=True
            )
            preempting.start()
            try:
                usual.send_bytes(messages.pack_info(model.info))
                self._answer(usual, model, self._computing.run)
            finally:
                preempting.join()
                self._computing.run(model.close)

    def _answer(
        self,
        connection: Connection,
        model: RewardModel,
        run: Callable[[Callable[[], bytes]], bytes],
    ) -> None:
        """Compute the batches that come on a connection, until it is closed."""
        clock = self._computing.clock
        with suppress(EOFError, OSError):
            while True:
                batch = connection.recv_bytes()
                connection.send_bytes(run(functools.partial(_score, model, batch, clock)))

    def _load(self, connection: Connection) -> RewardModel | None:
        """Load the model that is asked for; None when it was refused."""

        def check() -> None:
            if connection.poll():  # nothing is sent during a load: it was closed
                raise _LoadEnded

        asked, _ = messages.unpack(connection.recv_bytes())
        folder = Path(asked["folder"])
        try:
            with self._turn(check):
                model = load_model(folder, name=asked["name"], settings=self._settings, check=check)
        except _LoadEnded:
            raise
        except ManifestError as error:
            refused = CheckpointRefused(f"{folder}: {error}")
            connection.send_bytes(messages.pack_error(refused))
        except Exception as error:
            connection.send_bytes(_error(error, f"{folder} could not be loaded"))
        else:
            gc.collect()
            gc.freeze()  # a collection that walks all of torch would hold batches up
            return model
        return None

    @contextmanager
    def _turn(self, check: Callable[[], None]) -> Iterator[None]:
        """Wait for other loads, or for the load's end."""
        while not self._making.acquire(timeout=0.1):
            check()
        try:
            yield
        finally:
            self._making.release()


def _in_new_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread that ends with it.

    GNU OpenMP keeps a team of threads for each thread that has called torch, until that ends. As
    long as there are more of them than cores, they sleep after each operation instead of spinning
    for a moment, and batches take a fifth longer.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="guerdon-load") as loading:
        return loading.submit(function).result()


def own_share(settings: EngineSettings, engine: int) -> EngineSettings:
    """The settings of one of several engines: a GPU of its own, or a share of the cores.

    On a CPU the whole process, with all its threads, is held to that share.
    """
    if settings.devices == 1:
        return settings
    try:
        if settings.device != "cpu" and has_gpu():
            return dataclasses.replace(settings, devices=1, device=f"cuda:{engine}")
    except DeviceError:
        return settings  # loading a model says what is wrong
    cores, engines = sorted(os.sched_getaffinity(0)), settings.devices
    first, last = (place * len(cores) // engines for place in (engine, engine + 1))
    share = cores[first:last] or [cores[first % len(cores)]]
    os.sched_setaffinity(0, share)
    threads = settings.threads or len(share)
    return dataclasses.replace(settings, devices=1, threads=threads)


def _score(model: RewardModel, batch: bytes, clock: Callable[[], float]) -> bytes:
    began = clock()
    try:
        scores = model.score(messages.unpack_items(batch))
        stats = dataclasses.replace(scores.stats, seconds=clock() - began)
        return messages.pack_scores(dataclasses.replace(scores, stats=stats))
    except Exception as error:
        return _error(error, "a batch failed")


def _error(error: Exception, what: str) -> bytes:
    """An error as a message; what has no meaning to the server is logged here, whole."""
    if not isinstance(error, messages.ERRORS):
        logger.error(what, exc_info=error)
    return messages.pack_error(error)
