"""uvicorn beside gRPC on the service's own event loop, with bounds on its connections.

h11 parses: it is strict, and bounds the size of headers. (Which parser uvicorn takes by
itself depends on what else is installed.)
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from guerdon.serving.credentials import LoadedTLS
from guerdon.serving.logs import RateLimit
from guerdon.together import cancel

logger = logging.getLogger(__name__)

HEADER_BYTES = 16 * 1024
"""Most bytes of a request's line and headers."""
HEADER_SECONDS = 10.0
"""Seconds that the headers of a request may take, from the connection's or the last answer's
time on; also those of the TLS handshake."""
IDLE_SECONDS = 5
"""Seconds between an answer and the first byte of the next request."""
_BACKLOG = 128
_ACCEPT_PAUSE = 0.2
"""Seconds without accepting after that has failed, as for want of file descriptors."""

for noisy in ("uvicorn.error", __name__):  # a stranger decides how often these write
    logging.getLogger(noisy).addFilter(RateLimit(most=5, seconds=10.0))


class HTTPServer:
    """An app on a port; it leaves signals and logging alone.

    Args:
        port: 0 picks a free one; `port` is the real one.
        inherited: listens already, in place of host and port.
        connections: most connections, and never more than a sixth of the process's file
            descriptors. A new one takes the place of the one that has been idle the longest.

    Raises:
        OSError: the port cannot be bound.
    """

    def __init__(
        self,
        app: Any,
        *,
        host: str,
        port: int,
        tls: LoadedTLS | None,
        connections: int,
        inherited: socket.socket | None = None,
    ) -> None:
        self._socket = inherited or _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=IDLE_SECONDS,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # a caller could name any address as its own
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = tls.context if tls is not None else None
        self._config = config
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._server = _Server(config, self._socket, max(8, min(connections, descriptors // 6)))
        self._task: asyncio.Task[None] | None = None

    def replace_tls(self, tls: LoadedTLS) -> None:
        """Put other certificates in force for new connections, where the port is encrypted."""
        if self._config.ssl is not None:
            self._config.ssl = tls.context

    async def start(self) -> None:
        """Serve in the background; returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP server ended while it started")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Close the port and the connections; answers under way get a second more."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio looks for the protocol before it sets TCP_NODELAY. Without, an answer's body waits
    # until the caller has acknowledged the headers, for up to 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
        found.listen(_BACKLOG)
    except OSError:
        found.close()
        raise
    return found


class _Server(uvicorn.Server):
    """Accepts connections itself, since asyncio's servers neither bound nor outlive a shortage.

    Args:
        most: most connections at a time.
    """

    def __init__(self, config: uvicorn.Config, listener: socket.socket, most: int) -> None:
        super().__init__(config)
        self._listener = listener
        self._most = most
        self._handshakes: dict[asyncio.Task[None], None] = {}
        """Connections in their TLS handshake, the oldest first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Before the socket is closed: else the event loop watches a number that is another's.
        await cancel([self._accepting, *self._handshakes])
        await super().shutdown(sockets)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                logger.error("no HTTP connection can be accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            if self._make_room():
                task = loop.create_task(self._connect(connection))
                self._handshakes[task] = None
                task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            else:
                connection.close()
            await asyncio.sleep(0)  # however many wait, others get their turn

    async def _connect(self, connection: socket.socket) -> None:
        """Do the TLS handshake, if there is one, and hand over to the protocol."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self.config, self.server_state, self.lifespan.state),
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=HEADER_SECONDS if self.config.ssl else None,
            )
        except OSError as error:  # also of TLS
            logger.debug("an HTTP connection ended in its handshake: %s", error)

    def _make_room(self) -> bool:
        """Whether there is room for a connection, once an idle one has been given up."""
        connections = self.server_state.connections
        if len(connections) + len(self._handshakes) < self._most:
            return True
        idle = [each for each in connections if isinstance(each, _Connection) and each.idle]
        if idle:
            oldest = min(idle, key=lambda each: each.idle_since)
            connections.discard(oldest)
            oldest.transport.abort()
        elif self._handshakes:
            next(iter(self._handshakes)).cancel()
        return bool(idle or self._handshakes)


class _Connection(H11Protocol):
    """A connection that must send the headers of each request within a time."""

    idle_since = 0.0
    _due: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being served."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before:  # else the next request had come already
            self._await_headers()

    def _await_headers(self) -> None:
        self._stop_waiting()
        self.idle_since = self.loop.time()
        self._due = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
