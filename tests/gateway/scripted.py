"""A policy and rewards that do as a test says, behind the gateway's own protocols."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry

from guerdon.gateway.answering import Answering
from guerdon.gateway.config import SpendingSettings
from guerdon.gateway.metrics import GatewayMetrics
from guerdon.gateway.spending import Spending
from guerdon.gateway.types import (
    Draft,
    OnTokens,
    Plan,
    PolicyRequest,
    RankedChoices,
    RankingFailed,
    Sampling,
    Score,
    Strategy,
    Unscored,
)
from guerdon.serving.calls import Call
from guerdon.serving.errors import Interrupted
from guerdon.serving.prompts import FormattedText

MAX_TOKENS = 10


@dataclass
class ScriptedPolicy:
    """Draws `texts[i]` as candidate i, with as many tokens as it has words."""

    texts: Sequence[str]
    held: dict[int, asyncio.Event] = field(default_factory=dict)
    """Candidates that wait for their event; those after them wait too."""
    calls: list[tuple[int, int]] = field(default_factory=list)
    """First candidate and number of each draw."""
    closed: int = 0
    backwards: bool = False
    """The last candidate ends first."""
    growing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when drafts are gone on with."""
    grown: asyncio.Event | None = None
    """What going on with drafts waits for."""

    tells: bool = False
    """Whether it tells how far candidates are that are held: at their last token but one."""

    interrupted: list[set[int]] = field(default_factory=list)
    """The candidates that an update of the weights ends, by draw; going on with some is one too."""
    seeds: list[int | None] = field(default_factory=list)
    """The seed of each draw."""

    async def draw(
        self,
        request: PolicyRequest,
        indices: Sequence[int],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        self.calls.append((indices[0], len(indices)))
        self.seeds.append(request.sampling.seed)
        ended = self.interrupted.pop(0) if self.interrupted else set()
        if self.tells:
            for index in indices:
                on_tokens(index, self.part(index, max_tokens).tokens - 1)
        try:
            for index in sorted({*indices} - ended, reverse=self.backwards):
                if index in self.held:
                    await self.held[index].wait()
                yield self.part(index, max_tokens)
            check_whole(ended)
        finally:
            self.closed += 1

    async def go_on(
        self,
        request: PolicyRequest,
        drafts: Sequence[Draft],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        for draft in drafts if self.tells else ():
            on_tokens(draft.index, draft.tokens + 1)
        self.growing.set()
        if self.grown is not None:
            await self.grown.wait()
        ended = self.interrupted.pop(0) if self.interrupted else set()
        for draft in drafts:
            if draft.index not in ended:
                yield self.part(draft.index, draft.tokens + max_tokens)
        check_whole(ended)

    def part(self, index: int, most: int) -> Draft:
        words = self.texts[index].split()
        draft = Draft(
            index=index,
            text=self.texts[index],
            tokens=len(words),
            prompt_tokens=3,
            finish_reason="stop",
        )
        if len(words) <= most:
            return draft
        said = " ".join(words[:most])
        return replace(draft, text=said, tokens=most, finish_reason="length", ended=False)


def check_whole(ended: set[int]) -> None:
    """Raise what a sampler does whose update ended candidates."""
    if ended:
        raise Interrupted("the sampler: an update that was refused ended the generation: ask again")


@dataclass
class ScriptedRewards:
    """Scores a text by `scores`, a table or a function of model and text."""

    scores: dict[str, float] | Callable[[str, str], float]
    revision: Callable[[str], str] = lambda text: "r1"
    away: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a score is asked for."""

    async def ranks_only(self, model: str, deadline: float) -> bool:
        return False

    async def score(
        self, model: str, request: PolicyRequest, text: str, deadline: float
    ) -> Score | Unscored:
        self.asked.append((model, text))
        self.heard.set()
        if self.away:
            raise RankingFailed("the rewards are away")
        await asyncio.sleep(0)
        name = model.partition("@")[0]
        table = self.scores
        value = table(name, text) if callable(table) else table.get(text)
        if value is None:
            return Unscored("is too long for the reward model")
        return Score(value, name, self.revision(text))


def plan(strategy: str, best_of: int, **fields: Any) -> Plan:
    return Plan(strategy=Strategy(strategy), best_of=best_of, **{"model": "rm", **fields})


async def answer(
    policy: ScriptedPolicy,
    rewards: ScriptedRewards,
    given: Plan,
    *,
    unranked: Any = "refuse",
    max_tokens: int = MAX_TOKENS,
    max_seconds: float = 30.0,
    spending: Spending | None = None,
    seed: int | None = None,
) -> RankedChoices:
    """The gateway's answer to some question."""
    answering = Answering(
        policy,
        rewards,
        spending or Spending(SpendingSettings()),
        GatewayMetrics(CollectorRegistry()),
        unranked=unranked,
        max_seconds=max_seconds,
    )
    sampling = Sampling(max_tokens=max_tokens, seed=seed)
    request = PolicyRequest(prompt=FormattedText("what is rain"), sampling=sampling)
    async with asyncio.timeout(60):
        return await answering.answer(Call("http_completions", None), request, given)


def chosen(found: RankedChoices) -> list[int]:
    """The candidates that are the choices."""
    return [each.draft.index for each in found.choices]
