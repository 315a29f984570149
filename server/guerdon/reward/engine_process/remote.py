"""Models whose networks are computed in engine processes, and the keeper of those processes."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Connections:
    """The ends of a model's connections to an engine's process."""

    usual: Connection
    """The one for the load, and for batches one after the other."""
    urgent: Connection
    """The one for batches that go between the layers of others."""
    _asking: tuple[threading.Lock, threading.Lock] = field(
        default_factory=lambda: (threading.Lock(), threading.Lock())
    )
    """Held while an answer is waited for, so that nobody can get another one's."""

    def ask(self, message: bytes, *, preempting: bool) -> bytes:
        """The answer to a batch."""
        connection = self.urgent if preempting else self.usual
        with self._asking[preempting]:
            connection.send_bytes(message)
            return connection.recv_bytes()

    def close(self) -> None:
        """Let the engine free the model."""
        self.usual.close()
        self.urgent.close()

    def hang_up(self) -> None:
        """Let whoever waits for an answer see the connections' end."""
        for connection in (self.usual, self.urgent):
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as other:
                other.shutdown(socket.SHUT_RDWR)


class RemoteModel:
    """A `RewardModel` that tokenises here and computes in the engines' processes.

    Args:
        encoder: makes tokens of items.
        connections: to each engine, in which the model is loaded.
    """

    def __init__(
        self,
        keeper: EngineProcesses,
        folder: Path,
        info: ModelInfo,
        encoder: ItemEncoder,
        connections: list[Connections],
    ) -> None:
        self._keeper = keeper
        self._encoder = encoder
        self.folder = folder
        self.info = info
        self.connections = connections
        """The keeper puts another one in an old one's place when its engine was started anew."""

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """Render and tokenise; see `RewardModel.encode`."""
        return self._encoder.encode(item, truncation, reject_control_tokens=reject_control_tokens)

    def score(
        self, items: Sequence[EncodedItem], engine: int = 0, *, preempting: bool = False
    ) -> BatchScores:
        """Compute one batch; see `RewardModel.score`."""
        connections = self.connections[engine]
        try:
            answer = connections.ask(messages.pack_items(items), preempting=preempting)
            return messages.unpack_scores(answer)
        except (EOFError, OSError, DeviceLost) as error:
            self._keeper.kill(engine)  # whatever is left of it
            raise EngineLost(str(error) or "the engine's process has ended") from error

    def close(self) -> None:
        """Free the memory."""
        self._keeper.forget(self)
        for connections in self.connections:
            connections.close()


class _Engine:
    """One engine process.

    Args:
        number: of the engine.
        on_end: called on a thread when it has ended.
    """

    def __init__(self, spawner: Spawner, number: int, on_end: Callable[[], None]) -> None:
        self._channel, self.pid = spawner.spawn(number)
        self.started = time.monotonic()
        self.ended = threading.Event()
        self._on_end = on_end
        threading.Thread(target=self._watch, name="watch-engine", daemon=True).start()

    def load(self, folder: Path, name: str) -> Connections:
        """Ask for a load; the answer comes on the usual connection.

        Raises:
            EngineLost: the process has ended.
        """
        pairs = [socket.socketpair() for _ in range(2)]
        usual, urgent = (Connection(ours.detach()) for ours, _ in pairs)
        connections = Connections(usual, urgent)
        theirs = [other for _, other in pairs]
        try:
            with theirs[0], theirs[1]:
                socket.send_fds(self._channel, [b"m"], [each.fileno() for each in theirs])
            connections.usual.send_bytes(messages.pack({"folder": str(folder), "name": name}))
        except OSError as error:
            connections.close()
            raise EngineLost("the engine's process has ended") from error
        return connections

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
        with self._channel, suppress(OSError):
            self._channel.recv(1)  # nothing is ever sent
        self.ended.set()
        self._on_end()


class EngineProcesses:
    """Keeps engine processes running, with all models loaded in each of them.

    Args:
        spawner: starts engine processes.
        engines: how many.

    Raises:
        EngineLost: the first ones can't be started.
    """

    def __init__(self, spawner: Spawner, engines: int) -> None:
        self._spawner = spawner
        self.on_end: Callable[[int], None] = lambda engine: None
        """Called on a thread when an engine's process has ended."""
        self._models: set[RemoteModel] = set()
        self._lock = threading.Lock()
        """Held while the set of models, or an engine of it, changes."""
        self._closed = threading.Event()
        self._early_ends = [0] * engines
        """Processes of each engine that ended soon after they were started, one after another."""
        self._engines = [self._start(number) for number in range(engines)]

    @property
    def engines(self) -> int:
        """How many engines there are; see `EngineKeeper.engines`."""
        return len(self._engines)

    def lost(self, engine: int) -> bool:
        """Whether an engine's process has ended; see `EngineKeeper.lost`."""
        return self._engines[engine].ended.is_set()

    def load(self, folder: Path, name: str, check: Callable[[], None]) -> RemoteModel:
        """Load a checkpoint in all engines.

        Args:
            folder: of the checkpoint.
            name: under which it is served.
            check: called now and then; what it raises ends the load.

        Raises:
            CheckpointRefused: it would give wrong scores, or cannot be trusted.
            Unsupported: this machine lacks the device.
            EngineLost: an engine's process ended meanwhile, or is being started anew.
        """
        engines, connections = list(self._engines), list[Connections]()
        try:
            for engine in engines:
                connections.append(engine.load(folder, name))
            # While it loads there, since both read and hash the same files.
            checkpoint = inspect_checkpoint(folder)
            encoder = new_encoder(checkpoint)
            infos = [
                self._wait_loaded(engine, each.usual, check)
                for engine, each in zip(engines, connections, strict=True)
            ]
            if any(info.revision != checkpoint.revision for info in infos):
                raise CheckpointRefused(f"{folder} changed while it was loaded: load it again")
            model = RemoteModel(self, folder, _together(infos), encoder, connections)
            with self._lock:
                if engines != self._engines or any(engine.ended.is_set() for engine in engines):
                    raise EngineLost(_ENDED_LOADING)
                self._models.add(model)
        except BaseException:
            for each in connections:
                each.close()
            raise
        return model

    def forget(self, model: RemoteModel) -> None:
        """Load a model no more when an engine is started anew."""
        with self._lock:
            self._models.discard(model)

    def kill(self, engine: int) -> None:
        """End an engine's process; see `EngineKeeper.kill`.

        A process that is stuck in its device's driver does not end, and is waited for no more.
        """
        self._engines[engine].kill()
        for model in list(self._models):
            model.connections[engine].hang_up()

    def restore(self, engine: int) -> None:
        """Start an engine anew, and load its models; see `EngineKeeper.restore`."""
        for _ in range(ATTEMPTS):
            try:
                return self._start_again(engine)
            except EngineLost as error:
                logger.error("engine %d could not be started again: %s", engine, error)
                self.kill(engine)
        raise DeviceLost(f"engine {engine} ends whenever it is started")

    def close(self) -> None:
        """End the processes for good."""
        self._closed.set()
        for engine in self._engines:
            engine.close()

    def _start(self, number: int) -> _Engine:
        engine = _Engine(self._spawner, number, lambda: self.on_end(number))
        logger.info("engine %d is process %d", number, engine.pid)
        return engine

    def _start_again(self, number: int) -> None:
        lived = time.monotonic() - self._engines[number].started
        early = self._early_ends[number] = (
            self._early_ends[number] + 1 if lived < STEADY_SECONDS else 0
        )
        self._closed.wait(min(MAX_DELAY, 2.0**early / 2) if early else 0.0)
        self._check_open()
        began = time.monotonic()
        with self._lock:
            engine = self._engines[number] = self._start(number)
            models = list(self._models)
        for model in models:
            connections = self._reload(engine, model)
            with self._lock:
                if model not in self._models:  # it was unloaded meanwhile
                    connections.close()
                    continue
                model.connections[number].close()
                model.connections[number] = connections
        logger.warning(
            "engine %d was started again as process %d, with %d models in %.1f s",
            number,
            engine.pid,
            len(models),
            time.monotonic() - began,
        )

    def _reload(self, engine: _Engine, model: RemoteModel) -> Connections:
        connections = engine.load(model.folder, model.info.name)
        try:
            info = self._wait_loaded(engine, connections.usual, self._check_open)
        except ServiceError as error:
            raise DeviceLost(f"{model.info.name} can't be loaded again: {error}") from error
        if info.revision != model.info.revision:
            raise DeviceLost(
                f"{model.folder} is not what it was when {model.info.name} was loaded: "
                f"{info.revision_label} instead of {model.info.revision_label}"
            )
        return connections

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise DeviceLost("the server stops")

    def _wait_loaded(
        self, engine: _Engine, connection: Connection, check: Callable[[], None]
    ) -> ModelInfo:
        try:
            while not connection.poll(0.1):
                check()
            message = connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise EngineLost(_ENDED_LOADING) from error
        try:
            return messages.unpack_info(message)
        except DeviceLost as error:
            engine.kill()
            raise EngineLost(str(error)) from error


def _together(infos: Sequence[ModelInfo]) -> ModelInfo:
    """What is said of a model that several engines hold."""
    return dataclasses.replace(
        infos[0],
        device=", ".join(dict.fromkeys(info.device for info in infos)),
        probe_max_difference=max(info.probe_max_difference for info in infos),
    )
