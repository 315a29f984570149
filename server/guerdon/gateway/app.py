"""Puts the gateway together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from guerdon.client import TLS, Retry
from guerdon.client.policy import AsyncPolicyClient
from guerdon.gateway.answering import Answering
from guerdon.gateway.config import GatewayConfig
from guerdon.gateway.metrics import GatewayMetrics
from guerdon.gateway.pass_through import PassThrough
from guerdon.gateway.spending import Spending
from guerdon.gateway.upstream.endpoint import EndpointDrawer
from guerdon.gateway.upstream.openai_api import OpenAIAPI
from guerdon.gateway.upstream.rewards import RewardScorer
from guerdon.gateway.upstream.sampler import SamplerDrawer
from guerdon.gateway.wire.completions import ChatEndpoint, RequestDefaults, TextEndpoint
from guerdon.gateway.wire.models import model_routes
from guerdon.gateway.wire.partial_plans import ModelNames
from guerdon.gateway.wire.reward_models import ROLES as REWARD_MODEL_ROLES
from guerdon.gateway.wire.reward_models import add_reward_models
from guerdon.serving.access.identity import Role
from guerdon.serving.calls import CountedCalls
from guerdon.serving.credentials import read_token
from guerdon.serving.http.playground.pages import add_playground
from guerdon.serving.openai.replies import errors_beside
from guerdon.serving.openai.routes import OpenAIRoutes
from guerdon.serving.process.listening import Ports
from guerdon.serving.process.server import Server
from guerdon.serving.threads import OneThread

ROLES: Mapping[str, Role | None] = {
    ChatEndpoint.path: Role.SAMPLE,
    TextEndpoint.path: Role.SAMPLE,
    **REWARD_MODEL_ROLES,
}
"""What a caller of each path needs."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The connections to what the gateway stands in front of."""

    drawer: SamplerDrawer | EndpointDrawer
    scorer: RewardScorer
    pass_to: OpenAIAPI | None

    async def close(self) -> None:
        """Close them all."""
        await self.drawer.close()
        await self.scorer.close()
        if self.pass_to is not None:
            await self.pass_to.close()


class GatewayServer(Server[Ports]):
    """The gateway in this process.

    Raises:
        SettingsError: the settings cannot be served, or a file of them cannot be read.
    """

    title = "Guerdon best-of-n gateway"
    role = Role.SAMPLE

    def __init__(self, config: GatewayConfig) -> None:
        super().__init__(config)
        self._metrics = metrics = GatewayMetrics(self._prometheus)
        self._upstream = upstream = connect(config)
        self._thread = OneThread("bodies")
        offered = tuple(n for n in config.offered if 1 <= n <= config.max_best_of)
        names = ModelNames(config.name, config.presets, offered)
        models = model_routes(names, config.limits)
        spending = Spending(config.spending)
        answering = Answering(
            upstream.drawer,
            upstream.scorer,
            spending,
            metrics,
            unranked=config.unranked,
            max_seconds=config.max_seconds,
        )
        pass_through = PassThrough(
            upstream.pass_to,
            spending,
            metrics,
            max_tokens=config.max_tokens,
            max_seconds=config.max_seconds,
        )
        defaults = RequestDefaults(
            names=names,
            limits=config.limits,
            max_tokens=config.max_tokens,
            comment_seconds=config.comment_seconds,
        )
        door = self._new_door(metrics.refused_calls)
        app = self._open(door, (), {**ROLES, **models.roles}, errors_beside())
        OpenAIRoutes(
            CountedCalls(metrics, self.lifecycle),
            self._thread,
            ChatEndpoint(answering, pass_through, defaults),
            TextEndpoint(answering, pass_through, defaults),
        ).add_to(app)
        models.add_to(app)
        add_reward_models(app, upstream.scorer.cards, config.reward_page)
        add_playground(app, "sample")

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """None: gRPC has health alone."""
        return []

    async def listen(self) -> Ports:
        """Bind and serve all ports."""
        return await self._listen()

    async def load(self) -> None:
        """Look at the reward models; services behind it may come and go."""
        await self._upstream.scorer.look()

    async def stop(self) -> None:
        """Close the ports, then the connections."""
        await super().stop()
        self._thread.close()
        await self._upstream.close()


def connect(config: GatewayConfig) -> Upstream:
    """The connections of a gateway; each is opened when it is first used.

    Raises:
        SettingsError: a file of tokens can't be read, or a key would be shown to the network.
    """
    tls = TLS(ca=config.upstream_ca) if config.upstream_tls else None
    key = read_token("GUERDON_ENDPOINT_KEY", config.endpoint_key_file)
    if key:
        config.check_key()
    scorer = RewardScorer(
        config.models,
        seconds=config.reward_seconds,
        token=read_token("GUERDON_REWARD_TOKEN", config.reward_token_file) or None,
        tls=tls,
    )

    def api(url: str) -> OpenAIAPI:
        return OpenAIAPI(url, key=key, model=config.endpoint_model, ca=config.upstream_ca)

    passed = config.pass_to or config.endpoint
    pass_to = api(passed) if passed else None
    if config.endpoint:
        return Upstream(EndpointDrawer(api(config.endpoint)), scorer, pass_to)
    client = AsyncPolicyClient(
        config.sampler,
        token=read_token("GUERDON_SAMPLER_TOKEN", config.sampler_token_file) or None,
        tls=tls,
        retry=Retry(attempts=1),  # its retries favour short completions
        timeout=None,
    )
    return Upstream(SamplerDrawer(client), scorer, pass_to)
