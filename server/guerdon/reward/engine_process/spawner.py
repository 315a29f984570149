"""Forks engine processes from a process that has imported torch and done nothing else.

Importing torch and transformers takes seconds and hundreds of megabytes. The spawner forks once
they are imported and before there are threads, locks or a CUDA context, which no fork survives;
engines are forked from it, at first and when one has died. All share the memory of what was
imported.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import time
from typing import Final, NoReturn

from transformers.utils import logging as transformers_logging

from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.engine_process.host import Host
from guerdon.reward.types import EngineLost

logger = logging.getLogger(__name__)

_END_SECONDS: Final = 5.0
"""Seconds that engines have to end by themselves when the server's process has ended."""


class Spawner:
    """Starts engine processes. Make it before threads and event loops.

    Args:
        settings: how the engines compute.
    """

    def __init__(self, settings: EngineSettings) -> None:
        transformers_logging.disable_progress_bar()  # a bar is no line of a log
        self._requests, taken = socket.socketpair()
        gc.freeze()  # a collection would write to the memory that is shared
        if os.fork() == 0:
            self._requests.close()
            _Forks(taken, settings).run()
        gc.unfreeze()
        taken.close()

    def spawn(self, engine: int) -> tuple[socket.socket, int]:
        """The channel and the process id of a new process for an engine.

        Raises:
            EngineLost: the spawner itself has ended.
        """
        channel, given = socket.socketpair()
        try:
            with given:
                socket.send_fds(self._requests, [engine.to_bytes(1)], [given.fileno()])
            answer = channel.recv(4, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < 4:
            channel.close()
            raise EngineLost("the process that starts engines has ended")
        return channel, int.from_bytes(answer, "little")


class _Forks:
    """What the spawner's process does.

    Args:
        requests: each message on it carries the channel of a new engine.
    """

    def __init__(self, requests: socket.socket, settings: EngineSettings) -> None:
        self._requests = requests
        self._settings = settings
        self._engines: set[int] = set()

    def run(self) -> NoReturn:
        """Fork an engine for each request, until the server's process has ended."""
        try:
            # The server's process decides when engines end, also on a signal to the whole group.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, self._report_ends)
            while (asked := self._take()) is not None:
                engine, channel = asked
                pid = os.fork()
                if pid == 0:
                    self._requests.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    Host(self._settings, engine).run(channel)
                channel.close()
                self._engines.add(pid)
            self._end_engines()
        except BaseException:
            logger.critical("the process that starts engines failed", exc_info=True)
        finally:
            os._exit(0)

    def _take(self) -> tuple[int, socket.socket] | None:
        """The engine that is asked for, and its channel; None at the end."""
        number, descriptors, _, _ = socket.recv_fds(self._requests, 1, 1)
        if not descriptors:
            return None
        return int.from_bytes(number), socket.socket(fileno=descriptors[0])

    def _end_engines(self) -> None:
        """Wait until the engines have ended, as each does by itself; kill one that hangs."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end = time.monotonic() + _END_SECONDS
        while self._engines and time.monotonic() < end:
            time.sleep(0.05)
            self._report_ends()
        for pid in self._engines:
            os.kill(pid, signal.SIGKILL)

    def _report_ends(self, *_: object) -> None:
        """Reap the engines that have ended, and say how; also the handler of SIGCHLD."""
        for pid in list(self._engines):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            self._engines.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                logger.error("engine process %d was ended by %s", pid, signal.Signals(-code).name)
            elif code > 0:
                logger.error("engine process %d ended with code %d", pid, code)
