"""What every client has: a channel, a token, deadlines and retries."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import grpc

from guerdon.client._channel import Target, check_fork, forked, open_channel, proxy_hint, read_files
from guerdon.client._retry import Deadline, hedged, retrying
from guerdon.client.config import MAX_REPLY_BYTES, TLS, Clock, Retry
from guerdon.client.errors import (
    Cancelled,
    DeadlineExceeded,
    GuerdonError,
    Unavailable,
    from_rpc_error,
    invalid,
)

logger = logging.getLogger(__name__)

_SILENT, _NOTED = 1.0, 30.0
"""Seconds: how long a call has waited for a server when a warning says so, and how long then no
other call does."""

T = TypeVar("T")
Reply = TypeVar("Reply", covariant=True)


class Method(Protocol[Reply]):
    """A unary method of a stub."""

    def __call__(
        self, request: Any, /, *, timeout: float | None, metadata: Any
    ) -> Awaitable[Reply]:
        """Call it."""
        ...


class Unset:
    """The type of `UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset()
"""A timeout that is not given: the client's own holds. None means no limit."""


class Connection:
    """A lazily opened channel to one or several servers.

    It lives on one event loop at a time: where that of the earlier calls has ended, a new channel
    is opened. Pickled or copied it is its settings alone, the token among them.
    """

    def __init__(
        self,
        target: str | Sequence[str] | Target,
        *,
        token: str | None,
        tls: TLS | None,
        retry: Retry,
        timeout: float | None,
        clock: Clock,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        self.target = target if isinstance(target, Target) else Target(target)
        self._remake = functools.partial(
            type(self),
            self.target.endpoints,
            token=token,
            tls=tls,
            retry=retry,
            timeout=timeout,
            clock=clock,
            max_reply_bytes=max_reply_bytes,
        )
        self.clock = clock
        self.retry = retry
        self.default_timeout = timeout
        Deadline.after(clock, timeout)  # a wrong one is told of here, not at the first call
        if self.target.several and tls is not None and tls.server_name is None:
            raise ValueError("a list of endpoints with TLS needs TLS(server_name=…)")
        if tls is not None:
            read_files(tls)  # a missing one is told of here, too; they are read anew when needed
        self._tls = tls
        self._max_reply_bytes = max_reply_bytes
        check_token(token)
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        if token and tls is None and not self.target.loopback:
            logger.warning("the token goes over the network in clear text: use tls=TLS()")
        self._channel: grpc.aio.Channel | None = None
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._noted = -_NOTED

    def __reduce__(self) -> tuple[Callable[[], Connection], tuple[()]]:
        return self._remake, ()

    async def channel(self, deadline: Deadline | None = None) -> grpc.aio.Channel:
        """The channel.

        Args:
            deadline: until when names that can't be looked up are looked up again; None: once.

        Raises:
            RuntimeError: the client is closed, or in use on another event loop, or the process
                was forked after gRPC had started.
            Unavailable: no name of a list can be looked up.
        """
        if deadline is None:
            return await self._open()
        return await self._retrying(lambda _: self._open(), deadline)

    async def _open(self) -> grpc.aio.Channel:
        check_fork()
        self._enter_loop()
        async with self._opening:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._channel is None:
                address = await self.target.resolve()
                self._channel = open_channel(
                    address,
                    several=self.target.several,
                    tls=self._tls,
                    proxy=not self.target.loopback,
                    max_reply_bytes=self._max_reply_bytes,
                )
            return self._channel

    def _enter_loop(self) -> None:
        """Belong to the running event loop; what belonged to one that has ended is dropped."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                "this client belongs to another event loop, which has not been closed: make one "
                "for each loop, or use the synchronous client"
            )
        self._loop, self._channel, self._opening = loop, None, asyncio.Lock()

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._closed = True
        if self._channel is not None and not forked():
            if self._loop is asyncio.get_running_loop():
                await self._channel.close()
            self._channel = None

    def deadline(self, timeout: float | Unset | None) -> Deadline:
        """The deadline of a call that begins now."""
        seconds = self.default_timeout if isinstance(timeout, Unset) else timeout
        return Deadline.after(self.clock, seconds)

    async def call(self, method: Method[Reply], request: Any, deadline: Deadline) -> Reply:
        """One unary call that may be repeated.

        Raises:
            GuerdonError: it failed for good.
        """

        async def attempt(remaining: float | None) -> Reply:
            after = self.retry.hedge_after
            if after is None:
                return await self._ask(method, request, remaining)
            return await hedged(
                lambda: self._ask(method, request, deadline.remaining()), after, self.clock
            )

        return await self._retrying(attempt, deadline)

    async def _retrying(
        self, attempt: Callable[[float | None], Awaitable[T]], deadline: Deadline
    ) -> T:
        begun = self.clock.now()

        def waiting(error: GuerdonError, deadline: Deadline) -> None:
            self.note_waiting(error, begun, deadline)

        return await retrying(attempt, self.retry, self.clock, deadline, waiting)

    async def call_once(self, method: Method[Reply], request: Any, deadline: Deadline) -> Reply:
        """One unary call that must not be repeated.

        Raises:
            GuerdonError: it failed.
        """
        return await self._ask(method, request, deadline.remaining())

    async def _ask(self, method: Method[Reply], request: Any, remaining: float | None) -> Reply:
        if self._closed:
            raise self.ended()  # during the wait for this try
        try:
            return await method(request, timeout=remaining, metadata=self.metadata)
        except grpc.aio.AioRpcError as exc:
            raise self.error(exc) from exc
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise self.ended() from None

    def error(self, exc: grpc.aio.AioRpcError) -> GuerdonError:
        """The error that a failed call tells of; raise it `from` the original."""
        error = from_rpc_error(exc)
        if isinstance(error, Unavailable) and (hint := proxy_hint(self.target)):
            return Unavailable(f"{error.message} ({hint})", details=error.details)
        if isinstance(error, DeadlineExceeded) and error.message == "Deadline Exceeded":
            return DeadlineExceeded("no answer within the timeout of the call")  # gRPC says less
        return error

    def ended(self) -> GuerdonError:
        """The error of a call that was cancelled on this side, and not by its own task."""
        if self._closed:
            return Cancelled("the client was closed while the call was under way")
        return Unavailable("the channel was closed during the call")

    def note_waiting(self, error: GuerdonError, since: float, deadline: Deadline) -> None:
        """Warn of a server that is away, now and then: a program that stands still says why.

        Args:
            error: of the last try.
            since: when the call was begun.
            deadline: how long it goes on.
        """
        now = self.clock.now()
        early = now - since < _SILENT or now - self._noted < _NOTED
        if early or not isinstance(error, Unavailable):
            return
        self._noted = now
        remaining = deadline.remaining()
        left = "" if remaining is None else f" for up to {remaining:.0f} s"
        logger.warning("%s: %s; trying again%s", self.target, error.message, left)


def being_cancelled() -> bool:
    """Whether the current task is; if not, a `CancelledError` is of a call, by its channel."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def check_token(token: str | None) -> None:
    """Refuse a token that no header can carry. It is not shown.

    Raises:
        InvalidArgument: it has other characters than visible ASCII, or is no text.
    """
    if token is None or (isinstance(token, str) and re.fullmatch(r"[!-~]*", token)):
        return
    raise invalid("token", "must be visible ASCII characters without spaces or line ends")
