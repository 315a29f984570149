"""Scores by reward servers, through the client."""

from __future__ import annotations

import math
from collections.abc import Mapping

from guerdon.client import (
    TLS,
    AsyncRewardClient,
    FormattedText,
    GuerdonError,
    Item,
    Prompt,
    Retry,
)
from guerdon.gateway.types import Question, Score, Unscored
from guerdon.gateway.upstream.errors import reward_error, time_left
from guerdon.serving.prompts import Conversation
from guerdon.together import together

ATTEMPTS = 3
"""Tries of a score where a server is away: a second lost, rather than the call."""


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

    async def score(
        self, model: str, question: Question, text: str, deadline: float
    ) -> Score | Unscored:
        """The score of one answer; see `Scorer`."""
        name = model.partition("@")[0]
        client = self._by_model[name]
        timeout = min(time_left(deadline), self._seconds)
        try:
            result = await client.score(
                model, [Item(_prompt(question), [text])], priority="online", timeout=timeout
            )
        except GuerdonError as error:
            found = reward_error(name, error)
            if isinstance(found, Unscored):
                return found
            raise found from error
        value = result.scores[0][0]
        if not math.isfinite(value):
            return Unscored(f"{name} gives {value}, which is no finite number")
        return Score(value, result.info.model, result.info.revision)

    async def close(self) -> None:
        """Close the connections."""
        await together([client.close() for client in self._clients.values()])


def _prompt(question: Question) -> Prompt:
    """What is answered. Variables of the policy's chat template are none of the reward model's."""
    if isinstance(question.prompt, Conversation):
        return question.prompt.messages
    return FormattedText(question.prompt.text)
