"""What every client has: a channel, a token, deadlines and retries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

import grpc

from guerdon.client._channel import Target, check_fork, forked, open_channel
from guerdon.client._retry import Deadline, retrying
from guerdon.client.config import TLS, Clock, Retry
from guerdon.client.errors import Cancelled, from_rpc_error

logger = logging.getLogger(__name__)

CLOSED = "the client was closed while the call was under way"

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
    """A lazily opened channel to one or several servers; lives on one event loop."""

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None,
        tls: TLS | None,
        retry: Retry,
        timeout: float | None,
        clock: Clock,
    ) -> None:
        self.target = Target(target)
        self.clock = clock
        self.retry = retry
        self.default_timeout = timeout
        Deadline.after(clock, timeout)  # a wrong one is told of here, not at the first call
        if self.target.several and tls is not None and tls.server_name is None:
            raise ValueError("a list of endpoints with TLS needs TLS(server_name=…)")
        self._tls = tls
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        if token and tls is None and not self.target.loopback:
            logger.warning("the token goes over the network in clear text: use tls=TLS()")
        self._channel: grpc.aio.Channel | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def channel(self) -> grpc.aio.Channel:
        """The channel.

        Raises:
            RuntimeError: the client is closed, or the process was forked after gRPC had started.
            Unavailable: no name of a list can be looked up.
        """
        check_fork()
        async with self._opening:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._channel is None:
                address = await self.target.resolve()
                self._channel = open_channel(address, several=self.target.several, tls=self._tls)
            return self._channel

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._closed = True
        if self._channel is not None and not forked():
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
            return await self._ask(method, request, remaining)

        return await retrying(attempt, self.retry, self.clock, deadline)

    async def call_once(self, method: Method[Reply], request: Any, deadline: Deadline) -> Reply:
        """One unary call that must not be repeated.

        Raises:
            GuerdonError: it failed.
        """
        return await self._ask(method, request, deadline.remaining())

    async def _ask(self, method: Method[Reply], request: Any, remaining: float | None) -> Reply:
        try:
            return await method(request, timeout=remaining, metadata=self.metadata)
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise Cancelled(CLOSED) from None


def being_cancelled() -> bool:
    """Whether the current task is; if not, a `CancelledError` is of a call, by its channel."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
