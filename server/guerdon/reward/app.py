"""Puts the reward server together and runs it from start to drain."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from guerdon.reward.call_metrics import CallMetrics
from guerdon.reward.config import ServeConfig
from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.metrics_observer import MetricsObserver
from guerdon.reward.models.allowed_sources import AllowedSources
from guerdon.reward.models.load_threads import Loader
from guerdon.reward.models.registry import Registry
from guerdon.reward.scheduling.dispatcher import Dispatcher, DispatchLimits
from guerdon.reward.scoring.scorer import Scorer
from guerdon.reward.wire import admin, http, service
from guerdon.reward.wire.admin import ModelAdminService
from guerdon.reward.wire.http import RewardRoutes
from guerdon.reward.wire.service import RewardService
from guerdon.serving.callers import Role, read_callers
from guerdon.serving.credentials import warn_if_open
from guerdon.serving.door import Door
from guerdon.serving.errors import EngineDied
from guerdon.serving.http import new_app, new_operations_app
from guerdon.serving.lifecycle import Lifecycle, Phase
from guerdon.serving.listening import Listener
from guerdon.serving.metrics import ServiceMetrics, new_registry
from guerdon.serving.ports import Ports
from guerdon.serving.reloading import reloads_of
from guerdon.serving.wire import generic_handler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RewardPorts(Ports):
    """With that of administration."""

    admin_host: str
    admin_port: int | None

    def places(self) -> list[str]:
        """Each port, for people."""
        places = super().places()
        if self.admin_port is not None:
            places.append(f"admin on {self.admin_host}:{self.admin_port}")
        return places


class RewardServer:
    """One reward server in this process. Make and run it on one event loop.

    Args:
        loader: makes a model of a path; see `guerdon.reward.models.load_threads.Loader`.

    Raises:
        SettingsError: the settings cannot be served, or a file of them cannot be read.
    """

    def __init__(self, config: ServeConfig, loader: Loader) -> None:
        self._config = config
        self.lifecycle = Lifecycle()
        self._callers = read_callers(config)
        config.check_exposure(admin_token=self._callers.own_admin)
        prometheus = new_registry()
        common = ServiceMetrics(prometheus, self.lifecycle, config.tls_certificate)
        self._metrics = RewardMetrics(prometheus)
        self._metrics.queue_limit_tokens.set(config.queue.max_queued_tokens)
        observer = MetricsObserver(self._metrics, self._engine_down)
        self._dispatcher = Dispatcher(
            limits=DispatchLimits(
                batch=config.batching, queue=config.queue, hang_seconds=config.hang_seconds
            ),
            observer=observer,
        )
        self.registry = Registry(loader, observer, self._dispatcher.idle)
        self._scoring = Scorer(
            self.registry, self._dispatcher, self._metrics, threads=config.encode_threads
        )
        self._calls = calls = CallMetrics(self._metrics, self.registry)
        self._service = RewardService(
            self._scoring,
            self.registry,
            self.lifecycle,
            calls,
            config.limits,
            stream_items=config.stream_items,
        )
        self._door = self._new_door()
        self._listener = Listener(config, self._service_names(), self._door)
        self._app = new_app(
            "Guerdon reward server",
            importlib.metadata.version("guerdon"),
            self.lifecycle,
            None if config.metrics_port >= 0 else prometheus,
            door=self._door,
            roles=http.ROLES,
            max_body=config.max_body_bytes,
        )
        RewardRoutes(self._scoring, self.registry, self.lifecycle, calls, config.limits).add_to(
            self._app
        )
        self._operations = new_operations_app(self.lifecycle, prometheus, self._door)
        self._reloads = reloads_of(config, self._callers, self._listener, common.reloads)
        self.threads_left = False
        """After `run`: whether a load or a forward pass still goes on in a daemon thread."""
        self._engine_died = False

    async def run(self, on_ready: Callable[[RewardPorts], None], *, signals: bool = True) -> None:
        """Listen, load the models, serve until a signal, drain.

        Args:
            on_ready: called once, when work is accepted.
            signals: whether SIGTERM and SIGINT end it; else only `lifecycle.start_leaving` and
                `lifecycle.start_draining` do.

        Raises:
            OSError: a port cannot be bound.
            ServiceError: a model of the settings was refused; the text says why.
            EngineDied: the engine's thread died while serving.
        """
        if signals:
            self.lifecycle.handle_signals()
        self._reloads.start(signals=signals)
        await self._listener.set_serving(False)
        self._dispatcher.start()
        try:
            ports = await self._listen()
            loading = asyncio.create_task(self._load_models())
            stopping = asyncio.create_task(self.lifecycle.wait_leaving())
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self.lifecycle.start_serving()
                await self._listener.set_serving(True)
                on_ready(ports)
                await stopping
            loading.cancel()
            await self._drain()
        finally:
            await self._stop()
        if self._engine_died:
            raise EngineDied("the engine stopped; the log says why")

    async def _listen(self) -> RewardPorts:
        config = self._config
        own_admin = config.admin_port >= 0
        token = self._callers.guards(Role.SCORE)
        warn_if_open(config.host, tls=config.tls is not None, token=token)
        main = self._listener.new_server()
        main.add_generic_rpc_handlers(
            (generic_handler(service.SERVICE, self._service, self._door, service.ROLES),)
        )
        if self._callers.own_admin and not own_admin:
            self._add_admin(main)
        port = await self._listener.bind(main, config.host, config.port)
        admin_port = None
        if own_admin:
            server = self._listener.new_server()
            self._add_admin(server)
            admin_port = await self._listener.bind(server, config.admin_host, config.admin_port)
        return RewardPorts(
            host=config.host,
            port=port,
            http_port=await self._listener.start_http(self._app),
            metrics_port=await self._listener.start_metrics(self._operations),
            admin_host=config.admin_host,
            admin_port=admin_port,
        )

    def _add_admin(self, server: grpc.aio.Server) -> None:
        sources = AllowedSources(self._config.load_from, tuple(self._config.models.values()))
        implementation = ModelAdminService(self.registry, sources, self.lifecycle, self._calls)
        door = self._new_door()  # of its own: administration is possible at overload
        server.add_generic_rpc_handlers(
            (generic_handler(admin.SERVICE, implementation, door, admin.ROLES),)
        )

    def _new_door(self) -> Door:
        return Door(
            self._callers, max_calls=self._config.max_calls, refused=self._metrics.refused_calls
        )

    def _service_names(self) -> tuple[str, ...]:
        if self._callers.own_admin or self._config.admin_port >= 0:
            return (service.SERVICE.full_name, admin.SERVICE.full_name)
        return (service.SERVICE.full_name,)

    async def _load_models(self) -> None:
        for name, path in self._config.models.items():
            await self.registry.load(name, path)
        for alias, name in self._config.aliases.items():
            self.registry.set_alias(alias, name)

    async def _drain(self) -> None:
        await self._listener.set_serving(False)
        await self.lifecycle.leave(self._config.lame_duck)
        await self.lifecycle.wait_idle(self._config.drain_grace)

    async def _stop(self) -> None:
        self.lifecycle.start_draining()
        self._reloads.stop()
        engine_ended = await self._dispatcher.stop(grace=0.5)
        await self._listener.stop()
        self._scoring.close()
        if engine_ended:  # else a forward pass still runs in the models' memory
            await self.registry.close()
        self.threads_left = not engine_ended or self.registry.loading
        logger.info("stopped")

    def _engine_down(self) -> None:
        if self.lifecycle.phase is not Phase.DRAINING:
            logger.critical("the engine can compute no more: draining")
            self._engine_died = True
            self.lifecycle.start_draining()
