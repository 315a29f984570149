"""Puts the policy sampler together."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import grpc
import numpy as np

from guerdon.sampler.config import SamplerConfig
from guerdon.sampler.metrics import SamplerMetrics
from guerdon.sampler.sampling import Sampler, check_completion
from guerdon.sampler.tokenizer import Tokenizer
from guerdon.sampler.types import PolicyEngine, SamplingOptions
from guerdon.sampler.wire import http, service
from guerdon.sampler.wire.convert import StatusReader
from guerdon.sampler.wire.http import PolicyRoutes
from guerdon.sampler.wire.openai import SamplerAPI
from guerdon.sampler.wire.service import PolicyService
from guerdon.sampler.wire.updates import Updates
from guerdon.serving.access.identity import Role
from guerdon.serving.calls import CountedCalls
from guerdon.serving.errors import CheckpointRefused, ServiceError
from guerdon.serving.openai.replies import errors_beside
from guerdon.serving.process.listening import Ports
from guerdon.serving.process.server import Server
from guerdon.serving.wire.handlers import generic_handler

logger = logging.getLogger(__name__)


async def start(engine: PolicyEngine) -> None:
    """Start an engine, and have it draw a token: some fail only then.

    Raises:
        ServiceError: it can't serve the policy; the text says why.
    """
    await engine.start()
    prompt = np.zeros(1, dtype=np.int32)
    try:
        async with contextlib.aclosing(
            engine.generate(prompt, SamplingOptions(max_tokens=1, ignore_eos=True), n=1, seed=0)
        ) as drawn:
            async for completion in drawn:
                check_completion(completion)
    except ServiceError as error:
        raise CheckpointRefused(
            f"the engine started and can't draw a token of {engine.info.model}: {error}"
        ) from error


class SamplerServer(Server[Ports]):
    """The policy sampler in this process.

    Args:
        engine: not started yet.
        tokenizer: that of the same policy.
    """

    title = "Guerdon policy sampler"
    role = Role.SAMPLE

    def __init__(self, config: SamplerConfig, engine: PolicyEngine, tokenizer: Tokenizer) -> None:
        super().__init__(config)
        self.engine = engine
        self._metrics = metrics = SamplerMetrics(self._prometheus)
        metrics.limit.set(config.max_in_flight)
        calls = CountedCalls(metrics, self.lifecycle)
        self._sampler = Sampler(
            engine, tokenizer, metrics, config.limits, max_in_flight=config.max_in_flight
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
        status = StatusReader(
            engine, limit=config.max_in_flight, shared_path=updates.shared_path, nccl=updates.nccl
        )
        metrics.running.set_function(lambda: engine.load()[0])
        metrics.waiting.set_function(lambda: engine.load()[1])
        self._service = PolicyService(self._sampler, updates, status, calls, config.limits)
        self._door = self._new_door(metrics.refused_calls)
        name = config.served_name or Path(config.model).resolve().name
        api = SamplerAPI(self._sampler, engine, name, calls, config.limits)
        roles = {**http.ROLES, **api.roles}
        errors = errors_beside(native=http.ROLES)
        app = self._open(self._door, (service.SERVICE.full_name,), roles, errors)
        PolicyRoutes(self._sampler, status, calls, config.limits).add_to(app)
        api.add_to(app)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """The one service."""
        return [generic_handler(service.SERVICE, self._service, self._door, service.ROLES)]

    async def listen(self) -> Ports:
        """Bind and serve all ports."""
        return await self._listen()

    async def load(self) -> None:
        """Start the engine."""
        await start(self.engine)
        info = self.engine.info
        self._metrics.policy_info.labels(info.model, info.dtype).set(1)
        self._metrics.weight_version.set(self.engine.version)
        self._metrics.engine_up.set(1)

    async def wait_dead(self) -> str:
        """Return when the engine can draw no more, with the reason."""
        reason = await self.engine.wait_dead()
        self._metrics.engine_up.set(0)
        logger.critical("the engine died: %s", reason)
        return f"the engine died: {reason}"

    async def stop(self) -> None:
        """Close the ports, then end the engine."""
        await super().stop()
        self._sampler.close()
        await self.engine.shutdown()
