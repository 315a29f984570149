"""The sockets of a server: gRPC with health and reflection, and HTTP beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import resource
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from guerdon.serving.access.door import Door, guarded
from guerdon.serving.access.identity import Role
from guerdon.serving.config import ServerSettings
from guerdon.serving.credentials import LoadedTLS, warn_if_open
from guerdon.serving.http.server import HTTPServer
from guerdon.serving.wire import health

REPLY_GRACE = 1.0
"""Seconds that replies which are made get to leave the process."""
CONNECTION_STREAMS = 4096
"""Calls of one connection at a time. More wait at the client, within their deadline."""
_INHERITED = 3
"""The first file descriptor that a supervisor hands over."""
PENDING_CALLS = 16_384
"""Calls that have come and were not looked at yet."""
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
_REFLECTION_ROLES: Mapping[str, Role | None] = {"ServerReflectionInfo": None}


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The ports that a server really listens on."""

    host: str
    port: int
    http_port: int | None
    metrics_port: int | None = None

    def places(self) -> list[str]:
        """Each port, for people."""
        places = [f"gRPC on {self.host}:{self.port}"]
        if self.http_port is not None:
            places.append(f"HTTP on {self.host}:{self.http_port}")
        if self.metrics_port is not None:
            places.append(f"metrics on {self.host}:{self.metrics_port}")
        return places

    def sentence(self, what: str) -> str:
        """One line for people: what is served, and where."""
        return f"ready: {what}; {', '.join(self.places())}"

    def to_json(self) -> str:
        """JSON for scripts: hosts, ports, the process's number."""
        return json.dumps({**dataclasses.asdict(self), "pid": os.getpid()}) + "\n"


def most_connections() -> int:
    """Connections that a gRPC server may hold: a quarter of the process's file descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(soft // 4, 65_536))


def _reflection(names: Sequence[str]) -> grpc.GenericRpcHandler:
    method = grpc.stream_stream_rpc_method_handler(
        ReflectionServicer(names).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(REFLECTION, {"ServerReflectionInfo": method})


def inherited_socket() -> socket.socket | None:
    """The listening socket that a supervisor handed to this process, or None.

    systemd hands it over by `sd_listen_fds(3)`, and keeps it open while the server is started
    anew: requests that come while there is no server wait in its backlog instead of being refused.
    A second call gives None.

    Raises:
        OSError: what was handed over is not one listening TCP socket.
    """
    pid, count = os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS", "")
    if pid != str(os.getpid()):
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if count != "1":
        raise OSError(f"{count or 'no'} sockets were handed over, and one is taken, for HTTP")
    os.set_inheritable(_INHERITED, False)
    found = socket.socket(fileno=_INHERITED)
    listens = found.type is socket.SOCK_STREAM and found.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    )
    if found.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        raise OSError("what was handed over is no listening TCP socket")
    return found


class Listener:
    """Binds and serves what a process listens on.

    Args:
        services: full names of the process's services, for health and reflection.
        door: refuses calls from their headers alone.

    Raises:
        SettingsError: the certificates cannot be served.
    """

    def __init__(self, settings: ServerSettings, services: Sequence[str], door: Door) -> None:
        self._settings = settings
        self._tls_files = settings.tls
        self._tls = self._tls_files.load() if self._tls_files is not None else None
        self._services = tuple(services)
        self._door = door
        self._health = health.Health(self._services)
        self._servers: list[grpc.aio.Server] = []
        self._credentials: list[grpc.ServerCredentials] = []
        self._http: list[HTTPServer] = []

    async def set_serving(self, serving: bool) -> None:
        """Say of every service whether it takes calls."""
        await self._health.set_serving(serving)

    async def start_grpc(
        self, handlers: Sequence[grpc.GenericRpcHandler], host: str, port: int
    ) -> int:
        """Serve gRPC on an address, health and reflection included; the port that it got.

        Raises:
            OSError: the port cannot be bound.
        """
        server = grpc.aio.server(options=self._grpc_options())
        names = (*self._services, health.SERVICE_NAME, REFLECTION)
        # A call is looked for in this order.
        server.add_generic_rpc_handlers(
            (
                *handlers,
                self._health.handler(self._door),
                guarded(_reflection(names), self._door, _REFLECTION_ROLES),
            )
        )
        self._servers.append(server)
        address = f"[{host}]:{port}" if ":" in host and "[" not in host else f"{host}:{port}"
        try:
            if self._tls is not None:
                credentials = self._grpc_credentials(self._tls)
                self._credentials.append(credentials)
                bound = server.add_secure_port(address, credentials)
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port taken?") from error
        await server.start()
        return bound

    def _grpc_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", CONNECTION_STREAMS),
            # Beyond these gRPC ends calls with CANCELLED, as if their callers had. The
            # door sheds long before, and says when to come back.
            ("grpc.server.max_pending_requests", PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
            # Connections that say nothing make room for others.
            ("grpc.server_handshake_timeout_ms", 20_000),
            ("grpc.max_allowed_incoming_connections", most_connections()),
            # A port that somebody else has is an error, not half of the calls.
            ("grpc.so_reuseport", 0),
            # Clients may ping as often as their own keepalive says, calls or no calls.
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Callers behind a dead link are noticed, and their work dropped.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]

    def _grpc_credentials(self, first: LoadedTLS) -> grpc.ServerCredentials:
        """Credentials of a secure port: each handshake takes the certificates that are in force."""
        served = first

        def changed() -> Any:
            nonlocal served
            if self._tls is None or self._tls is served:
                return None
            served = self._tls
            return served.grpc

        return grpc.dynamic_ssl_server_credentials(
            first.grpc,
            changed,
            require_client_authentication=first.context.verify_mode is ssl.CERT_REQUIRED,
        )

    def reload_tls(self) -> None:
        """Put the certificates that the files hold now in force for new connections.

        Raises:
            SettingsError: they cannot be served; those before stay.
        """
        if self._tls_files is not None:
            self._tls = self._tls_files.load()
            for server in self._http:
                server.replace_tls(self._tls)

    async def start_http(self, app: Any, *, token: bool) -> int | None:
        """Serve an app over HTTP; its port, or None where the settings want none.

        Args:
            token: whether work needs one.

        Raises:
            OSError: the port cannot be bound, or what a supervisor handed over is not one.
        """
        inherited = inherited_socket()
        if inherited is not None:
            address = inherited.getsockname()[0]
            warn_if_open(address, tls=self._tls is not None, token=token)
        return await self._start(app, self._settings.http_port, self._tls, inherited)

    async def start_metrics(self, app: Any) -> int | None:
        """Serve metrics and probes over plain HTTP; their port, or None without one of their own.

        Raises:
            OSError: the port cannot be bound.
        """
        return await self._start(app, self._settings.metrics_port, None, None)

    async def _start(
        self, app: Any, port: int, tls: LoadedTLS | None, inherited: socket.socket | None
    ) -> int | None:
        if port < 0 and inherited is None:
            return None
        server = HTTPServer(
            app,
            host=self._settings.host,
            port=port,
            tls=tls,
            connections=self._settings.http_connections,
            inherited=inherited,
        )
        self._http.append(server)
        await server.start()
        return server.port

    async def stop(self) -> None:
        """Close the ports; replies that are made still leave."""
        await asyncio.gather(*(server.stop(REPLY_GRACE) for server in self._servers))
        await asyncio.gather(*(server.stop() for server in self._http))
