"""Scores by reward servers, through the client."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guerdon.client import (
    TLS,
    AsyncRewardClient,
    FormattedText,
    GuerdonError,
    Item,
    Prompt,
    Retry,
)
from guerdon.gateway.types import RANKS_ONLY, PolicyRequest, Score, Unscored
from guerdon.gateway.upstream.errors import reward_error, time_left
from guerdon.gateway.upstream.reward_replies import model_card, ranking_score
from guerdon.serving.errors import Unsupported
from guerdon.serving.prompts import Conversation
from guerdon.together import together

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Tries of a score where a server is away: a second lost, rather than the call."""

BURST_SECONDS = 0.001
"""Longest wait of an answer for others of its call that end in the same step of the policy: one
request for all of them costs little more than a request for one."""


LOOK_SECONDS = 1.0
"""Longest time of finding out what a model is."""
LOOK_AGAIN_SECONDS = 10.0
"""Wait before a model that could not be looked at is looked at again."""
LATER = "the reward model %s can't be looked at now, but when a call asks for it: %s"
REFUSED = "reward: calls that ask for %s are refused, since it %s"


@dataclass(slots=True)
class _Burst:
    """Answers to one question that ended together."""

    texts: list[str] = field(default_factory=list)
    scoring: asyncio.Future[list[Score | Unscored]] = field(init=False)


class RewardScorer:
    """Scores by served models.

    Args:
        addresses: HOST:PORT of the server, by the model's name.
        seconds: longest time of a score.
        token: shown to all servers.
        tls: how connections are encrypted, if they are.
    """

    def __init__(
        self, addresses: Mapping[str, str], *, seconds: float, token: str | None, tls: TLS | None
    ) -> None:
        self._clients = {
            address: AsyncRewardClient(
                address, token=token, tls=tls, retry=Retry(attempts=ATTEMPTS)
            )
            for address in dict.fromkeys(addresses.values())
        }
        self._by_model = {model: self._clients[at] for model, at in addresses.items()}
        self._seconds = seconds
        self._bursts: dict[tuple[str, int], _Burst] = {}
        self._cards: asyncio.Future[list[dict[str, Any]]] | None = None
        self._look_at_cards_again = 0.0
        """Time on `monotonic` from which cards are asked for again."""
        self._known: dict[str, bool] = {}
        """Whether a model ranks only, as it was last asked."""
        self._look_again: dict[str, float] = {}
        """Until when a model whose server did not answer is not asked again, on `monotonic`."""

    async def look(self) -> None:
        """Find out what all models are, and log it; a server may be away."""
        deadline = time.monotonic() + LOOK_SECONDS

        async def look_at(model: str) -> None:
            try:
                await self._look_at(model, deadline)
            except GuerdonError as error:
                logger.warning(LATER, model, error.message)

        await together([look_at(model) for model in self._by_model])

    async def ranks_only(self, model: str, deadline: float) -> bool:
        """Whether a model has no score for one answer; see `Scorer`."""
        if self._known.get(model) is False or time.monotonic() < self._look_again.get(model, 0):
            return False
        try:
            return await self._look_at(model, deadline)
        except GuerdonError:  # what is wrong with it will show when it is asked for a score
            self._look_again[model] = time.monotonic() + LOOK_AGAIN_SECONDS
            return False

    async def _look_at(self, model: str, deadline: float) -> bool:
        """Whether a model ranks only, as its server says now; logged when it is news."""
        timeout = min(time_left(deadline), LOOK_SECONDS)
        info = await self._by_model[model].get_model(model, timeout=timeout)
        if self._known.get(model) is not info.ranks_only:
            self._known[model] = info.ranks_only
            if info.ranks_only:
                logger.warning(REFUSED, model, RANKS_ONLY)
            else:
                logger.info("the reward model %s is of kind %s", info.pinned, info.kind)
        return info.ranks_only

    async def cards(self) -> list[dict[str, Any]]:
        """The cards of all models as their servers give them; `reason` where one does not.

        Whoever asks within a second of another gets the same.
        """
        now = time.monotonic()
        if self._cards is None or now >= self._look_at_cards_again:
            self._look_at_cards_again = now + LOOK_SECONDS
            self._cards = asyncio.ensure_future(together([*map(self._card, self._by_model)]))
        return await asyncio.shield(self._cards)

    async def _card(self, model: str) -> dict[str, Any]:
        try:
            info = await self._by_model[model].get_model(model, timeout=LOOK_SECONDS)
        except GuerdonError as error:
            logger.warning("the reward model %s can't be looked at: %s", model, error.message)
            return {"name": model, "reason": f"can't be looked at now: {error.message}"}
        return model_card(info)

    async def score(
        self, model: str, request: PolicyRequest, text: str, deadline: float
    ) -> Score | Unscored:
        """The score of one answer; see `Scorer`. Answers that end together share a request."""
        key = (model, id(request))
        burst = self._bursts.get(key)
        if burst is None:
            burst = self._begin_burst(key, request, deadline)
        place = len(burst.texts)
        burst.texts.append(text)
        return (await burst.scoring)[place]

    def _begin_burst(self, key: tuple[str, int], request: PolicyRequest, deadline: float) -> _Burst:
        burst = self._bursts[key] = _Burst()

        def close() -> None:
            if self._bursts.get(key) is burst:
                del self._bursts[key]

        async def score() -> list[Score | Unscored]:
            await asyncio.sleep(BURST_SECONDS)
            close()
            return await self._scores(key[0], request, burst.texts, deadline)

        burst.scoring = asyncio.ensure_future(score())
        # A task that is cancelled before its first step runs no line of its coroutine.
        burst.scoring.add_done_callback(lambda _: close())
        return burst

    async def _scores(
        self, model: str, request: PolicyRequest, texts: Sequence[str], deadline: float
    ) -> list[Score | Unscored]:
        name = model.partition("@")[0]
        client = self._by_model[name]
        timeout = min(time_left(deadline), self._seconds)
        try:
            result = await client.score(
                model, [Item(_prompt(request), texts)], priority="online", timeout=timeout
            )
        except GuerdonError as error:
            found = reward_error(name, error)
            if isinstance(found, Unsupported):
                # Another revision was promoted: the next call looks again.
                self._known.pop(name, None)
            if not isinstance(found, Unscored):
                raise found from error
            if len(texts) == 1:
                return [found]
            # One of them is at fault: each is asked for alone.
            alone = [self._scores(model, request, [text], deadline) for text in texts]
            return [score for [score] in await together(alone)]
        return [ranking_score(reply, result.info) for reply in result.items[0].scores]

    async def close(self) -> None:
        """Close the connections."""
        await together([client.close() for client in self._clients.values()])


def _prompt(request: PolicyRequest) -> Prompt:
    """What is answered. Variables of the policy's chat template are none of the reward model's."""
    if isinstance(request.prompt, Conversation):
        return request.prompt.messages
    return FormattedText(request.prompt.text)
