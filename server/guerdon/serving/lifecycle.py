"""Starting, serving, draining: what the process does with calls and with signals.

On SIGTERM or SIGINT the server leaves: the health service and `/readyz` say so at once, while
calls are still accepted for as long as the settings want (lame duck), so that load balancers look
elsewhere first. Then it drains: no new call is accepted, what was accepted is finished within
the grace period, and the process exits with code 0. A second signal exits at once.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from guerdon.serving.errors import Unavailable

logger = logging.getLogger(__name__)


class Phase(enum.Enum):
    """A part of a server's life."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"
    """Calls are accepted, and it says that it is not ready."""
    DRAINING = "draining"


class Lifecycle:
    """Counts accepted work and knows whether more may come. Used on one event loop."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.able = True
        """Whether accepted work can be done at once; a service clears it for a while."""
        self.accepted = 0
        """Calls and stream items that are being served."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._leaving = asyncio.Event()
        self._draining = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether callers should choose this server."""
        return self.phase is Phase.SERVING and self.able

    @property
    def accepting(self) -> bool:
        """Whether new work is accepted."""
        return self.phase in (Phase.SERVING, Phase.LEAVING)

    def start_serving(self) -> None:
        """Accept work, unless a signal has come before."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.SERVING

    def start_leaving(self) -> None:
        """Say that other servers should be chosen; a server that is starting drains at once."""
        if self.phase is Phase.STARTING:
            self.start_draining()
        elif self.phase is Phase.SERVING:
            self.phase = Phase.LEAVING
            self._leaving.set()

    def start_draining(self) -> None:
        """Accept no more work."""
        self.phase = Phase.DRAINING
        self._leaving.set()
        self._draining.set()

    def check_accepting(self) -> None:
        """Refuse work where none is accepted.

        Raises:
            Unavailable: the server is starting or draining.
        """
        if not self.accepting:
            how = "come back" if self.phase is Phase.STARTING else "try another one"
            raise Unavailable(f"the server is {self.phase.value}; {how}")

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold the server open while a call is served.

        Raises:
            Unavailable: the server is starting or draining.
        """
        self.check_accepting()
        self.accepted += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.accepted -= 1
            if self.accepted == 0:
                self._idle.set()

    async def wait_leaving(self) -> None:
        """Return when the server begins to leave, or to drain."""
        await self._leaving.wait()

    async def leave(self, lame_duck: float) -> None:
        """Accept work for so many seconds more, then begin to drain."""
        with suppress(TimeoutError):
            async with asyncio.timeout(lame_duck):
                await self._draining.wait()
        self.start_draining()

    async def wait_draining(self) -> None:
        """Return when draining begins."""
        await self._draining.wait()

    async def wait_idle(self, grace: float) -> bool:
        """Wait until accepted work is finished; False if `grace` seconds were not enough."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d calls were not finished after %.1f s", self.accepted, grace)
            return False
        return True

    def handle_signals(self) -> None:
        """Leave on the first SIGTERM or SIGINT, exit at once on the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._leaving.is_set():
            logger.warning("second signal (%s): exiting at once", number.name)
            os._exit(128 + number)
        logger.info("%s: leaving, %d calls being served", number.name, self.accepted)
        self.start_leaving()
