"""Starting, serving, draining: what the process does with calls and with signals.

On SIGTERM or SIGINT no new call is accepted, what was accepted is finished within
the grace period, and the process exits with code 0. A second signal exits at once.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from guerdon.serving.errors import Unavailable

logger = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Where in its life the server is."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """Counts accepted work and knows whether more may come. Used on one event loop."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._accepted = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = asyncio.Event()

    @property
    def phase(self) -> Phase:
        """Where in its life the server is."""
        return self._phase

    @property
    def accepted(self) -> int:
        """Calls and stream items that are being served."""
        return self._accepted

    @property
    def ready(self) -> bool:
        """Whether new work is accepted."""
        return self._phase is Phase.SERVING

    def start_serving(self) -> None:
        """Accept work, unless a signal has come before."""
        if self._phase is Phase.STARTING:
            self._phase = Phase.SERVING

    def start_draining(self) -> None:
        """Accept no more work."""
        self._phase = Phase.DRAINING
        self._draining.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold the server open while a call is served.

        Raises:
            Unavailable: the server is starting or draining.
        """
        if not self.ready:
            raise Unavailable(f"the server is {self._phase.value}; try another one")
        self._accepted += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._accepted -= 1
            if self._accepted == 0:
                self._idle.set()

    async def wait_draining(self) -> None:
        """Return when draining begins."""
        await self._draining.wait()

    async def wait_idle(self, grace: float) -> bool:
        """Wait until accepted work is finished; False if `grace` seconds were not enough."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d calls were not finished after %.1f s", self._accepted, grace)
            return False
        return True

    def handle_signals(self) -> None:
        """Drain on the first SIGTERM or SIGINT, exit at once on the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._draining.is_set():
            logger.warning("second signal (%s): exiting at once", number.name)
            os._exit(128 + number)
        logger.info("%s: draining, %d calls being served", number.name, self._accepted)
        self.start_draining()
