"""Puts the policy sampler together and runs it from start to drain."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import Callable

import numpy as np

from guerdon.sampler.config import SamplerConfig
from guerdon.sampler.metrics import SamplerMetrics
from guerdon.sampler.requests import Options
from guerdon.sampler.sampling import Sampling, check_completion
from guerdon.sampler.standing import Standing
from guerdon.sampler.texts import Texts
from guerdon.sampler.types import PolicyEngine
from guerdon.sampler.wire import http, service
from guerdon.sampler.wire.calls import Calls
from guerdon.sampler.wire.http import PolicyRoutes
from guerdon.sampler.wire.service import PolicyService
from guerdon.sampler.wire.updates import Updates
from guerdon.serving.callers import Callers, Role, read_callers
from guerdon.serving.credentials import warn_if_open
from guerdon.serving.door import Door
from guerdon.serving.errors import CheckpointRefused, EngineDied, ServiceError
from guerdon.serving.http import new_app, new_operations_app
from guerdon.serving.lifecycle import Lifecycle
from guerdon.serving.listening import Listener
from guerdon.serving.metrics import ServiceMetrics, new_registry
from guerdon.serving.ports import Ports
from guerdon.serving.reloading import reloads_of
from guerdon.serving.wire import generic_handler

logger = logging.getLogger(__name__)


def callers_of(config: SamplerConfig) -> Callers:
    """Who may call.

    Raises:
        SettingsError: a file of tokens cannot be read or hold what it does, or other machines
            could replace the weights.
    """
    callers = read_callers(config)
    config.check_exposure(admin_token=callers.own_admin)
    return callers


async def start(engine: PolicyEngine) -> None:
    """Start an engine, and have it draw a token: some fail only then.

    Raises:
        ServiceError: it can't serve the policy; the text says why.
    """
    await engine.start()
    prompt = np.zeros(1, dtype=np.int32)
    try:
        async with contextlib.aclosing(
            engine.generate(prompt, Options(max_tokens=1, ignore_eos=True), n=1, seed=0)
        ) as drawn:
            async for completion in drawn:
                check_completion(completion)
    except ServiceError as error:
        raise CheckpointRefused(
            f"the engine started and can't draw a token of {engine.info.model}: {error}"
        ) from error


class SamplerServer:
    """One policy sampler in this process. Make and run it on one event loop.

    Args:
        engine: not started yet.
        texts: the tokenizer's side of the same policy.

    Raises:
        SettingsError: the settings cannot be served, or a file of them cannot be read.
    """

    def __init__(self, config: SamplerConfig, engine: PolicyEngine, texts: Texts) -> None:
        self._config = config
        self.engine = engine
        self.lifecycle = Lifecycle()
        self._callers = callers_of(config)
        prometheus = new_registry()
        common = ServiceMetrics(prometheus, self.lifecycle, config.tls_certificate)
        self._metrics = metrics = SamplerMetrics(prometheus)
        metrics.limit.set(config.max_in_flight)
        calls = Calls(metrics)
        self._sampling = Sampling(
            engine, texts, metrics, config.limits, max_in_flight=config.max_in_flight
        )
        updates = Updates(
            engine,
            metrics,
            self.lifecycle,
            config.limits,
            allowed=config.updates,
            shared_dirs=config.shared_dirs,
            nccl=config.nccl,
            idle_seconds=config.update_idle_seconds,
        )
        standing = Standing(
            engine, limit=config.max_in_flight, shared_path=updates.shared_path, nccl=updates.nccl
        )
        metrics.running.set_function(lambda: engine.load()[0])
        metrics.waiting.set_function(lambda: engine.load()[1])
        self._service = PolicyService(
            self._sampling, updates, standing, self.lifecycle, calls, config.limits
        )
        self._door = Door(self._callers, max_calls=config.max_calls, refused=metrics.refused_calls)
        self._app = new_app(
            "Guerdon policy sampler",
            importlib.metadata.version("guerdon"),
            self.lifecycle,
            None if config.metrics_port >= 0 else prometheus,
            door=self._door,
            roles=http.ROLES,
            max_body=config.max_body_bytes,
        )
        PolicyRoutes(self._sampling, standing, self.lifecycle, calls, config.limits).add_to(
            self._app
        )
        self._listener = Listener(config, (service.SERVICE.full_name,), self._door)
        self._operations = new_operations_app(self.lifecycle, prometheus, self._door)
        self._reloads = reloads_of(config, self._callers, self._listener, common.reloads)
        self._died = ""

    async def run(self, on_ready: Callable[[Ports], None], *, signals: bool = True) -> None:
        """Listen, start the engine, serve until a signal, drain.

        Args:
            on_ready: called once, when work is accepted.
            signals: whether SIGTERM and SIGINT end it; else only `lifecycle.start_leaving` and
                `lifecycle.start_draining` do.

        Raises:
            OSError: a port cannot be bound.
            ServiceError: the policy was refused; the text says why.
            EngineDied: the engine died while serving.
        """
        if signals:
            self.lifecycle.handle_signals()
        self._reloads.start(signals=signals)
        await self._listener.set_serving(False)
        try:
            ports = await self._listen()
            starting = asyncio.create_task(start(self.engine))
            stopping = asyncio.create_task(self.lifecycle.wait_leaving())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._serve(ports, on_ready, stopping)
            starting.cancel()
        finally:
            await self._stop()
        if self._died:
            raise EngineDied(f"the engine died: {self._died}")

    async def _serve(
        self, ports: Ports, on_ready: Callable[[Ports], None], stopping: asyncio.Task[None]
    ) -> None:
        """From ready to drained."""
        info = self.engine.info
        self._metrics.policy_info.labels(info.model, info.dtype).set(1)
        self._metrics.weight_version.set(self.engine.version)
        self._metrics.engine_up.set(1)
        self.lifecycle.start_serving()
        await self._listener.set_serving(self.lifecycle.ready)
        on_ready(ports)
        dying = asyncio.create_task(self.engine.wait_dead())
        await asyncio.wait({stopping, dying}, return_when=asyncio.FIRST_COMPLETED)
        await self._listener.set_serving(False)
        leaving = asyncio.create_task(self.lifecycle.leave(self._config.lame_duck))
        await asyncio.wait({leaving, dying}, return_when=asyncio.FIRST_COMPLETED)
        self.lifecycle.start_draining()
        idle = asyncio.create_task(self.lifecycle.wait_idle(self._config.drain_grace))
        await asyncio.wait({idle, dying}, return_when=asyncio.FIRST_COMPLETED)
        if dying.done():
            self._died = dying.result()
            self._metrics.engine_up.set(0)
            logger.critical("the engine died: %s", self._died)
        idle.cancel()
        dying.cancel()

    async def _listen(self) -> Ports:
        config = self._config
        token = self._callers.guards(Role.SAMPLE)
        warn_if_open(config.host, tls=config.tls is not None, token=token)
        server = self._listener.new_server()
        handler = generic_handler(service.SERVICE, self._service, self._door, service.ROLES)
        server.add_generic_rpc_handlers((handler,))
        port = await self._listener.bind(server, config.host, config.port)
        http_port = await self._listener.start_http(self._app)
        metrics_port = await self._listener.start_metrics(self._operations)
        return Ports(host=config.host, port=port, http_port=http_port, metrics_port=metrics_port)

    async def _stop(self) -> None:
        self.lifecycle.start_draining()
        self._reloads.stop()
        await self._listener.stop()
        self._sampling.close()
        await self.engine.shutdown()
        logger.info("stopped")
