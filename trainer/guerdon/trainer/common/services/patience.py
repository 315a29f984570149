"""Waiting for a service that is away, as long as the run's patience lasts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from guerdon.client import Clock, GuerdonError
from guerdon.trainer.common.errors import ServiceGone, SettingsError, TrainingError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds: bounds of the longest wait before a try, which doubles from one to the other."""

_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}

_TOKENS = (
    " (GUERDON_TOKEN or --token-file; for the sampler's weights GUERDON_ADMIN_TOKEN or "
    "--admin-token-file)"
)
_HINTS = {
    grpc.StatusCode.UNAUTHENTICATED: _TOKENS,
    grpc.StatusCode.PERMISSION_DENIED: _TOKENS,  # a token without the role that is needed
}


class ServiceRefused(TrainingError):
    """A service answered with an error that asking again would not mend."""


class Patience:
    """Asks one service, again and again while it is away.

    It is away when nobody answers, when an attempt's deadline passes, when it is overloaded, and
    when it ends a call because something else came between (ABORTED). All else is an answer, and
    ends the run at once.

    Args:
        service: what it is called in messages, such as `the sampler`.
        address: its HOST:PORT.
        seconds: a service that gave a call no answer for so long raises `ServiceGone`; that it
            is overloaded is one.
        clock: time and chance, for tests.
    """

    def __init__(
        self,
        service: str,
        address: str,
        seconds: float,
        *,
        clock: Clock = Clock(),  # noqa: B008 - frozen
    ) -> None:
        self.service = service
        self.address = address
        self.seconds = seconds
        self.faults_survived = 0
        """Times that it was away (overload and ABORTED do not count) and came back."""
        self.overloads = 0
        """Answers that it is overloaded."""
        self._clock = clock
        self._away = False
        self._overload_noted = -seconds
        self._turn = 0
        """Goes up as it goes away and as it comes back. A call that was begun before the last of
        these tells nothing new: it broke in an outage that is over, or ended just before one."""

    async def ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call returns, made anew until it succeeds.

        Args:
            call: safe to repeat; raises `GuerdonError`.

        Raises:
            ServiceGone: the patience is over.
            GuerdonError: the service answered with another error, as it came.
        """
        since: float | None = None
        tries = 0
        while True:
            asked, begun = self._turn, self._clock.now()
            try:
                result = await call()
            except GuerdonError as error:
                if not is_away(error):
                    raise
                self._note(error, asked)
                since = self._silent_since(since, begun, error)
                wait = self._wait(error, tries)
                if self._clock.now() - since + wait > self.seconds:
                    raise self._gone(error) from error
                tries += 1
            else:
                self._answered(asked)
                return result
            await self._clock.sleep(wait)

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Do as `ask` does, with every other error made a `ServiceRefused`."""
        try:
            return await self.ask(call)
        except GuerdonError as error:
            raise self.refused(error) from error

    def refused(self, error: GuerdonError) -> ServiceRefused:
        """The error for an answer that ends the run."""
        hint = _HINTS.get(error.code, "")
        return ServiceRefused(
            f"{self.service} at {self.address} refuses: {error.code.name}: {error.message}{hint}"
        )

    def away(self) -> None:
        """Note that the service was seen to be away, or to have been."""
        self._turn += not self._away
        self._away = True

    def _silent_since(self, since: float | None, begun: float, error: GuerdonError) -> float:
        """Since when the service has given this call no answer of any kind.

        A long call that breaks was answered until it broke; one whose deadline passed was not.
        A service that sheds load has answered.
        """
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return self._clock.now()
        if since is not None:
            return since
        late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return begun if late else self._clock.now()

    def _answered(self, asked: int) -> None:
        if self._away and asked == self._turn:
            self._away = False
            self._turn += 1
            self.faults_survived += 1

    def _note(self, error: GuerdonError, asked: int) -> None:
        if error.code is grpc.StatusCode.ABORTED:
            return  # by an update of ours
        if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self.overloads += 1
            self._note_overload(error)
            return
        if self._away or asked < self._turn:
            return
        logger.warning(
            "%s at %s is away (%s); asking again for up to %g seconds",
            self.service,
            self.address,
            error.message,
            self.seconds,
        )
        self.away()

    def _note_overload(self, error: GuerdonError) -> None:
        """Warn, at most once in the time of the patience: a run that waits says why."""
        now = self._clock.now()
        if now - self._overload_noted < self.seconds:
            return
        self._overload_noted = now
        logger.warning(
            "%s at %s is overloaded (%s); waiting for as long as it says so",
            self.service,
            self.address,
            error.message,
        )

    def _wait(self, error: GuerdonError, tries: int) -> float:
        ceiling = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(tries, 30))
        return self._clock.uniform(ceiling / 2, ceiling) + (error.retry_after or 0.0)

    def _gone(self, error: GuerdonError) -> ServiceGone:
        return ServiceGone(
            f"{self.service} at {self.address} gave no answer for {self.seconds:g} seconds "
            f"(--patience); the last error was {error.code.name}: {error.message}"
        )


def is_away(error: GuerdonError) -> bool:
    """Whether the same call may succeed later."""
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return error.retry_after is not None  # without it, the message itself is too large
    return error.code in _AWAY


def parse_address(text: str, setting: str) -> str:
    """A HOST:PORT, checked.

    Raises:
        SettingsError: it is none; the setting is named.
    """
    host, _, port = text.rpartition(":")
    if (
        not host
        or "/" in host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise SettingsError(f"{setting}: {text!r} is not HOST:PORT")
    return text
