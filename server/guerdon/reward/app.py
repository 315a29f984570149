"""Puts the reward server together."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import grpc

from guerdon.reward.config import RewardConfig
from guerdon.reward.counting import MetricsObserver, ScoringCalls
from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.models.allowed_sources import AllowedSources
from guerdon.reward.models.loader import Loader
from guerdon.reward.models.registry import Registry
from guerdon.reward.scheduling.dispatcher import Dispatcher
from guerdon.reward.scheduling.limits import DispatchLimits
from guerdon.reward.scoring.scorer import Scorer
from guerdon.reward.types import EngineKeeper
from guerdon.reward.wire import admin, http, service
from guerdon.reward.wire.admin import ModelAdminService
from guerdon.reward.wire.formats import registry as formats
from guerdon.reward.wire.formats.routes import FormatRoutes
from guerdon.reward.wire.formats.scoring import FormatScorer
from guerdon.reward.wire.formats.tei_info import InfoRoute, TEIInfo, TEILimits
from guerdon.reward.wire.http import RewardRoutes
from guerdon.reward.wire.service import RewardService
from guerdon.reward.wire.tei import service as tei
from guerdon.serving.access.identity import Role
from guerdon.serving.http.playground.pages import add_playground
from guerdon.serving.lifecycle import Phase
from guerdon.serving.process.listening import Ports
from guerdon.serving.process.server import Server
from guerdon.serving.wire.handlers import generic_handler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RewardPorts(Ports):
    """The ports of a reward server, that of administration among them."""

    admin_host: str
    admin_port: int | None

    def places(self) -> list[str]:
        """Each port, for people."""
        places = super().places()
        if self.admin_port is not None:
            places.append(f"admin on {self.admin_host}:{self.admin_port}")
        return places


class RewardServer(Server[RewardPorts]):
    """The reward service.

    Args:
        loader: makes a model of a path; see `guerdon.reward.models.loader.Loader`.
        engines: keeps the processes that models compute in; None where they do in this one.
    """

    title = "Guerdon reward server"
    role = Role.SCORE

    def __init__(
        self, config: RewardConfig, loader: Loader, engines: EngineKeeper | None = None
    ) -> None:
        super().__init__(config)
        self._config = config
        self._engines = engines
        self._telling: set[asyncio.Future[None]] = set()
        """What tells the health service of the engine."""
        self._metrics = metrics = RewardMetrics(self._prometheus)
        metrics.queue_limit_tokens.set(config.queue.max_queued_tokens)
        observer = MetricsObserver(
            metrics, on_engine_changed=self._engine_changed, on_engines_ended=self._engines_ended
        )
        self._dispatcher = Dispatcher(
            limits=DispatchLimits(
                batch=config.batching, queue=config.queue, hang_seconds=config.hang_seconds
            ),
            observer=observer,
            keeper=engines,
        )
        if engines is not None:
            engines.on_end = self._dispatcher.engine_ended
        self.registry = Registry(loader, observer, self._dispatcher.idle)
        self._scoring = Scorer(
            self.registry, self._dispatcher, metrics, threads=config.encode_threads
        )
        self._calls = ScoringCalls(metrics, self.registry, self.lifecycle)
        parts = (self._scoring, self.registry, self._calls, config.limits)
        self._service = RewardService(*parts, stream_items=config.stream_items)
        self._door = self._new_door(metrics.refused_calls)
        roles = {**http.ROLES, **formats.ROLES, **InfoRoute.ROLES}
        app = self._open(self._door, self._service_names(), roles)
        add_playground(app, "rank")
        format_scorer = FormatScorer(
            self._scoring, self.registry, config.limits, config.formats.default_model
        )
        limits = _tei_limits(config)
        tei_info = TEIInfo(self.registry, format_scorer, limits)
        InfoRoute(self._calls, tei_info).add_to(app)
        format_routes = FormatRoutes(
            self._scoring,
            self._calls,
            format_scorer,
            config.formats,
            formats.FORMATS,
            most_waiting=config.http_connections // 2,
            most_waiting_bytes=4 * config.max_body_bytes,
        )
        format_routes.add_to(app, http.ROLES, InfoRoute.ROLES)
        RewardRoutes(*parts, format_routes).add_to(app)
        self._tei = tei.TEIService(
            self._scoring, self._calls, format_scorer, config.formats, tei_info, limits
        )
        self.threads_left = False
        """After `run`: whether a load or a forward pass still goes on in a daemon thread."""

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Scoring, and administration where it has a token and no port of its own."""
        found = [generic_handler(service.SERVICE, self._service, self._door, service.ROLES)]
        for each in tei.SERVICES:
            found.append(generic_handler(each, self._tei, self._door, tei.ROLES))
        if self._callers.own_admin and self._config.admin_port < 0:
            found.append(self._admin())
        return found

    async def listen(self) -> RewardPorts:
        """Bind and serve all ports."""
        config, ports, admin_port = self._config, await self._listen(), None
        if config.admin_port >= 0:
            admin_port = await self._listener.start_grpc(
                [self._admin()], config.admin_host, config.admin_port
            )
        return RewardPorts(**vars(ports), admin_host=config.admin_host, admin_port=admin_port)

    def _admin(self) -> grpc.GenericRpcHandler:
        sources = AllowedSources(self._config.load_from, tuple(self._config.models.values()))
        implementation = ModelAdminService(self.registry, sources, self._calls)
        # A door of its own: administration is possible at overload.
        door = self._new_door(self._metrics.refused_calls)
        return generic_handler(admin.SERVICE, implementation, door, admin.ROLES)

    def _service_names(self) -> tuple[str, ...]:
        served = [service.SERVICE, *tei.SERVICES]
        if self._callers.own_admin or self._config.admin_port >= 0:
            served.append(admin.SERVICE)
        return tuple(each.full_name for each in served)

    async def load(self) -> None:
        """Start the engine threads, and load the models of the settings."""
        self._dispatcher.start()
        for name, path in self._config.models.items():
            await self.registry.load(name, path)
        for alias, name in self._config.aliases.items():
            self.registry.set_alias(alias, name)

    async def stop(self) -> None:
        """End what is computed, so that its callers are told, then close the ports."""
        self._scoring.end_judging()
        engine_ended = await self._dispatcher.stop(grace=0.5)
        if self._engines is not None:
            if not engine_ended:
                for engine in range(self._engines.engines):
                    self._engines.kill(engine)
            self._engines.close()
            engine_ended = engine_ended or await self._dispatcher.stop(grace=0.5)
        await super().stop()
        self._scoring.close()
        if engine_ended:  # else a forward pass still runs in the models' memory
            await self.registry.close()
        self.threads_left = not engine_ended or self.registry.loading

    def _engine_changed(self, up: bool) -> None:
        self.lifecycle.able = up
        telling = asyncio.ensure_future(self._listener.set_serving(self.lifecycle.ready))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _engines_ended(self) -> None:
        if self.lifecycle.phase is not Phase.DRAINING:
            logger.critical("the engine can compute no more: draining")
            self._died = "the engine stopped; the log says why"
            self.lifecycle.start_draining()


def _tei_limits(config: RewardConfig) -> TEILimits:
    return TEILimits(
        max_calls=config.max_calls,
        max_batch_tokens=config.batching.max_batch_tokens,
        max_batch_sequences=config.batching.max_batch_sequences,
        max_texts=config.limits.max_responses,
        encode_threads=config.encode_threads,
        stream_items=config.stream_items,
        max_message_bytes=config.max_message_bytes,
    )
