"""Models whose networks are computed in an engine's process, and the keeper of that process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.encoders import ItemEncoder, new_encoder
from guerdon.reward.engine_process import messages
from guerdon.reward.engine_process.spawner import Spawner
from guerdon.reward.types import (
    BatchScores,
    DeviceLost,
    EncodedItem,
    EngineLost,
    ModelInfo,
    ScoreItem,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused, ServiceError

logger = logging.getLogger(__name__)

STEADY_SECONDS: Final = 10.0
"""An engine that lived so long is started again at once. Each that did not doubles the delay."""
MAX_DELAY: Final = 10.0
"""Most seconds between an engine's end and its next start."""
ATTEMPTS: Final = 6
"""Engines that may end, one after another, before any model is loaded again."""

_ENDED_LOADING: Final = (
    "the engine's process ended while it loaded a model; the log says by what, and SIGKILL mostly "
    "means that memory was short"
)


class RemoteModel:
    """A `RewardModel` that tokenises here and computes in an engine's process.

    Args:
        encoder: makes tokens of items.
        connection: of a model that is loaded there.
    """

    def __init__(
        self,
        keeper: EngineProcess,
        folder: Path,
        info: ModelInfo,
        encoder: ItemEncoder,
        connection: Connection,
    ) -> None:
        self._keeper = keeper
        self._encoder = encoder
        self.folder = folder
        self.info = info
        self.connection = connection
        """The keeper puts another one in its place when the engine was started anew."""

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """Render and tokenise; see `RewardModel.encode`."""
        return self._encoder.encode(item, truncation, reject_control_tokens=reject_control_tokens)

    def score(self, items: Sequence[EncodedItem]) -> BatchScores:
        """Compute one batch; see `RewardModel.score`."""
        try:
            self.connection.send_bytes(messages.pack_items(items))
            return messages.unpack_scores(self.connection.recv_bytes())
        except (EOFError, OSError, DeviceLost) as error:
            self._keeper.kill()  # whatever is left of it
            raise EngineLost(str(error) or "the engine's process has ended") from error

    def close(self) -> None:
        """Free the memory."""
        self._keeper.forget(self)
        self.connection.close()


class _Engine:
    """One engine process.

    Args:
        on_end: called on a thread when it has ended.
    """

    def __init__(self, spawner: Spawner, on_end: Callable[[], None]) -> None:
        self._channel, self.pid = spawner.spawn()
        self.started = time.monotonic()
        self.ended = threading.Event()
        self._on_end = on_end
        threading.Thread(target=self._watch, name="watch-engine", daemon=True).start()

    def load(self, folder: Path, name: str) -> Connection:
        """Ask for a load; the answer comes on the connection.

        Raises:
            EngineLost: the process has ended.
        """
        ours, theirs = socket.socketpair()
        connection = Connection(ours.detach())
        try:
            with theirs:
                socket.send_fds(self._channel, [b"m"], [theirs.fileno()])
            connection.send_bytes(messages.pack({"folder": str(folder), "name": name}))
        except OSError as error:
            connection.close()
            raise EngineLost("the engine's process has ended") from error
        return connection

    def kill(self) -> None:
        """End the process at once."""
        if not self.ended.is_set():
            self.ended.set()
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end."""
        self.ended.set()
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def _watch(self) -> None:
        with suppress(OSError):
            self._channel.recv(1)  # nothing is ever sent
        self.ended.set()
        self._on_end()


class EngineProcess:
    """Keeps one engine process running, with all models loaded in it.

    Args:
        spawner: starts engine processes.

    Raises:
        EngineLost: the first one can't be started.
    """

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self.on_end: Callable[[], None] = lambda: None
        """Called on a thread when an engine's process has ended."""
        self._models: set[RemoteModel] = set()
        self._lock = threading.Lock()
        """Held while the engine or the set of models changes."""
        self._closed = threading.Event()
        self._early_ends = 0
        """Engines that ended soon after they were started, one after another."""
        self._engine = self._start()

    @property
    def pid(self) -> int:
        """The process id of the engine that was started last."""
        return self._engine.pid

    def load(self, folder: Path, name: str, check: Callable[[], None]) -> RemoteModel:
        """Load a checkpoint in the engine's process.

        Args:
            folder: of the checkpoint.
            name: under which it is served.
            check: called now and then; what it raises ends the load.

        Raises:
            CheckpointRefused: it would give wrong scores, or cannot be trusted.
            Unsupported: this machine lacks the device.
            EngineLost: the engine's process ended meanwhile.
        """
        engine = self._engine
        connection = engine.load(folder, name)
        try:
            # While it loads there, since both read and hash the same files.
            checkpoint = inspect_checkpoint(folder)
            encoder = new_encoder(checkpoint)
            info = self._wait_loaded(connection, check)
            if info.revision != checkpoint.revision:
                raise CheckpointRefused(f"{folder} changed while it was loaded: load it again")
            model = RemoteModel(self, folder, info, encoder, connection)
            with self._lock:
                if engine is not self._engine:
                    raise EngineLost(_ENDED_LOADING)
                self._models.add(model)
        except BaseException:
            connection.close()
            raise
        return model

    def forget(self, model: RemoteModel) -> None:
        """Load a model no more when the engine is started anew."""
        with self._lock:
            self._models.discard(model)

    def kill(self) -> None:
        """End the engine's process; see `EngineKeeper.kill`."""
        self._engine.kill()

    @property
    def lost(self) -> bool:
        """Whether the engine has ended; see `EngineKeeper.lost`."""
        return self._engine.ended.is_set()

    def restore(self) -> None:
        """Start the engine anew, and load its models; see `EngineKeeper.restore`."""
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    return self._start_again()
                except EngineLost as error:
                    logger.error("the engine could not be started again: %s", error)
                    self._engine.kill()
        raise DeviceLost("the engine ends whenever it is started")

    def close(self) -> None:
        """End the process for good."""
        self._closed.set()
        self._engine.close()

    def _start(self) -> _Engine:
        engine = _Engine(self._spawner, lambda: self.on_end())
        logger.info("the engine is process %d", engine.pid)
        return engine

    def _start_again(self) -> None:
        lived = time.monotonic() - self._engine.started
        self._early_ends = self._early_ends + 1 if lived < STEADY_SECONDS else 0
        delay = min(MAX_DELAY, 2.0**self._early_ends / 2) if self._early_ends else 0.0
        self._closed.wait(delay)
        self._check_open()
        began = time.monotonic()
        self._engine = self._start()
        for model in self._models:
            model.connection.close()
            model.connection = self._reload(model)
        logger.warning(
            "the engine was started again as process %d, with %d models in %.1f s",
            self._engine.pid,
            len(self._models),
            time.monotonic() - began,
        )

    def _reload(self, model: RemoteModel) -> Connection:
        connection = self._engine.load(model.folder, model.info.name)
        try:
            info = self._wait_loaded(connection, self._check_open)
        except ServiceError as error:
            raise DeviceLost(f"{model.info.name} can't be loaded again: {error}") from error
        if info.revision != model.info.revision:
            raise DeviceLost(
                f"{model.folder} is not what it was when {model.info.name} was loaded: "
                f"{info.revision_label} instead of {model.info.revision_label}"
            )
        return connection

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise DeviceLost("the server stops")

    def _wait_loaded(self, connection: Connection, check: Callable[[], None]) -> ModelInfo:
        try:
            while not connection.poll(0.1):
                check()
            message = connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise EngineLost(_ENDED_LOADING) from error
        try:
            return messages.unpack_info(message)
        except DeviceLost as error:
            self.kill()
            raise EngineLost(str(error)) from error
