"""Puts the reward server together and runs it from start to drain."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc_reflection.v1alpha import reflection

from guerdon.reward.config import ServeConfig
from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.observer import MetricsObserver
from guerdon.reward.registry import Loader, Registry
from guerdon.reward.scheduling.dispatcher import Dispatcher, DispatchLimits
from guerdon.reward.scoring import Scoring
from guerdon.reward.wire import admin, service
from guerdon.reward.wire.admin import ModelAdminService
from guerdon.reward.wire.calls import CallMetrics
from guerdon.reward.wire.http import RewardRoutes
from guerdon.reward.wire.service import RewardService
from guerdon.serving import health
from guerdon.serving.credentials import BearerToken, read_token, warn_if_open
from guerdon.serving.http import HTTPServer, new_app
from guerdon.serving.lifecycle import Lifecycle, Phase
from guerdon.serving.metrics import new_registry
from guerdon.serving.wire import generic_handler

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "GUERDON_TOKEN"  # noqa: S105 - the variable's name, not a token
ADMIN_TOKEN_VARIABLE = "GUERDON_ADMIN_TOKEN"  # noqa: S105

_REPLY_GRACE = 1.0
"""Seconds that replies which are made get to leave the process."""


class EngineDied(RuntimeError):
    """Nothing can be computed any more: the process must be started anew."""


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The ports that the server really listens on."""

    host: str
    port: int
    http_port: int | None
    admin_host: str
    admin_port: int | None

    def sentence(self, models: list[str]) -> str:
        """For people."""
        parts = [f"gRPC on {self.host}:{self.port}"]
        if self.http_port is not None:
            parts.append(f"HTTP on {self.host}:{self.http_port}")
        if self.admin_port is not None:
            parts.append(f"admin on {self.admin_host}:{self.admin_port}")
        return f"ready: {', '.join(models) or 'no model yet'}; {', '.join(parts)}"

    def to_json(self) -> str:
        """For scripts: hosts, ports, the process's number."""
        return json.dumps({**dataclasses.asdict(self), "pid": os.getpid()}) + "\n"


class RewardServer:
    """One reward server in this process. Make and run it on one event loop.

    Args:
        loader: makes a model of a path; see `guerdon.reward.registry.Loader`.

    Raises:
        SettingsError: the settings cannot be served, or a file of them cannot be read.
    """

    def __init__(self, config: ServeConfig, loader: Loader) -> None:
        self._config = config
        self.lifecycle = Lifecycle()
        self._token = BearerToken(read_token(TOKEN_VARIABLE, config.token_file))
        self._admin_token = BearerToken(read_token(ADMIN_TOKEN_VARIABLE, config.admin_token_file))
        config.check_exposure(admin_token=bool(self._admin_token))
        self._tls = config.tls
        prometheus = new_registry()
        self._metrics = RewardMetrics(prometheus)
        self._metrics.queue_limit_tokens.set(config.queue.max_queued_tokens)
        observer = MetricsObserver(self._metrics, self._engine_down)
        self._dispatcher = Dispatcher(
            limits=DispatchLimits(batch=config.batching, queue=config.queue), observer=observer
        )
        self.registry = Registry(loader, observer, self._dispatcher.idle)
        self._scoring = Scoring(
            self.registry, self._dispatcher, self._metrics, threads=config.encode_threads
        )
        self._calls = calls = CallMetrics(self._metrics, self.registry)
        self._service = RewardService(
            self._scoring, self.registry, self.lifecycle, calls, config.limits,
            stream_items=config.stream_items,
        )  # fmt: skip
        self._health = health.Health(self._service_names())
        self._app = new_app(
            "Guerdon reward server", importlib.metadata.version("guerdon"), self.lifecycle,
            prometheus, max_body=config.max_body_bytes,
        )  # fmt: skip
        RewardRoutes(
            self._scoring, self.registry, self.lifecycle, calls, config.limits, self._token
        ).add_to(self._app)
        self.threads_left = False
        """After `run`: whether a load or a forward pass still goes on in a daemon thread."""
        self._engine_died = False
        self._servers: list[grpc.aio.Server] = []
        self._http: HTTPServer | None = None

    async def run(self, on_ready: Callable[[Ports], None], *, signals: bool = True) -> None:
        """Listen, load the models, serve until a signal, drain.

        Args:
            on_ready: called once, when work is accepted.
            signals: whether SIGTERM and SIGINT begin the drain; else only
                `lifecycle.start_draining` does.

        Raises:
            OSError: a port cannot be bound.
            ServiceError: a model of the settings was refused; the text says why.
        EngineDied: the engine's thread died while serving.
        """
        if signals:
            self.lifecycle.handle_signals()
        await self._health.set_serving(False)
        self._dispatcher.start()
        try:
            ports = await self._listen()
            loading = asyncio.create_task(self._load_models())
            stopping = asyncio.create_task(self.lifecycle.wait_draining())
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self.lifecycle.start_serving()
                await self._health.set_serving(True)
                on_ready(ports)
                await stopping
            loading.cancel()
            await self._drain()
        finally:
            await self._stop()
        if self._engine_died:
            raise EngineDied("the engine's thread died; the log says why")

    async def _listen(self) -> Ports:
        config = self._config
        token, own_admin = bool(self._token), config.admin_port >= 0
        warn_if_open(config.host, tls=self._tls is not None, token=token)
        main = self._new_server()
        main.add_generic_rpc_handlers(
            (generic_handler(service.SERVICE, self._service, self._token.check_call),)
        )
        if self._admin_token and not own_admin:
            self._add_admin(main)
        self._add_common(main)
        port = await self._bind(main, config.host, config.port)
        admin_port = None
        if own_admin:
            server = self._new_server()
            self._add_admin(server)
            self._add_common(server)
            admin_port = await self._bind(server, config.admin_host, config.admin_port)
        http_port = None
        if config.http_port >= 0:
            self._http = HTTPServer(
                self._app, host=config.host, port=config.http_port, tls=self._tls
            )
            await self._http.start()
            http_port = self._http.port
        return Ports(
            host=config.host, port=port, http_port=http_port,
            admin_host=config.admin_host, admin_port=admin_port,
        )  # fmt: skip

    def _new_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # A port that somebody else has is an error, not half of the calls.
                ("grpc.so_reuseport", 0),
                # Clients may ping as often as their own keepalive says, calls or no calls.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Callers behind a dead link are noticed, and their queued work dropped.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ]
        )
        self._servers.append(server)
        return server

    def _add_admin(self, server: grpc.aio.Server) -> None:
        implementation = ModelAdminService(self.registry, self.lifecycle, self._calls)
        server.add_generic_rpc_handlers(
            (generic_handler(admin.SERVICE, implementation, self._admin_token.check_call),)
        )

    def _add_common(self, server: grpc.aio.Server) -> None:
        self._health.add_to(server)
        names = (*self._service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    def _service_names(self) -> tuple[str, ...]:
        if self._admin_token or self._config.admin_port >= 0:
            return (service.SERVICE.full_name, admin.SERVICE.full_name)
        return (service.SERVICE.full_name,)

    async def _bind(self, server: grpc.aio.Server, host: str, port: int) -> int:
        address = f"[{host}]:{port}" if ":" in host and "[" not in host else f"{host}:{port}"
        try:
            if self._tls is not None:
                bound = server.add_secure_port(address, self._tls.grpc_credentials())
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is the port taken?") from error
        await server.start()
        return bound

    async def _load_models(self) -> None:
        for name, path in self._config.models.items():
            await self.registry.load(name, path)
        for alias, name in self._config.aliases.items():
            self.registry.set_alias(alias, name)

    async def _drain(self) -> None:
        await self._health.set_serving(False)
        await self.lifecycle.wait_idle(self._config.drain_grace)

    async def _stop(self) -> None:
        self.lifecycle.start_draining()
        engine_ended = await self._dispatcher.stop(grace=0.5)
        await asyncio.gather(*(server.stop(_REPLY_GRACE) for server in self._servers))
        if self._http is not None:
            await self._http.stop()
        self._scoring.close()
        if engine_ended:  # else a forward pass still runs in the models' memory
            await self.registry.close()
        self.threads_left = not engine_ended or self.registry.loading
        logger.info("stopped")

    def _engine_down(self) -> None:
        if self.lifecycle.phase is not Phase.DRAINING:
            logger.critical("the engine's thread died: draining")
            self._engine_died = True
            self.lifecycle.start_draining()
