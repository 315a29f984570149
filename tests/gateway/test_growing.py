"""Speculative rejection on a real sampler, against the same rounds worked out by its formula."""

from __future__ import annotations

import math

from tests.support.formula_engine import END, length_of, token_of
from tests.support.in_process import until

from .support import numbers_in, reward_of, start_gateway

PROMPT = [5, 3]  # "Where now": the formula tokenizer's tokens are the words' lengths
CHUNK, MOST, COUNT = 3, 11, 6


def drawn(prompt: list[int], sample: int, most: int) -> list[int]:
    """What the engine draws, the token that ends it included."""
    length = length_of(prompt, sample)
    tokens = [token_of(0, prompt, sample, place, 0) for place in range(min(length, most))]
    return [*tokens[:-1], END] if length <= most else tokens


def text_of(tokens: list[int]) -> str:
    return " ".join(str(token) for token in tokens if token != END)


def ended(tokens: list[int]) -> bool:
    return tokens[-1] == END or len(tokens) == MOST


def expected() -> tuple[dict[int, list[int]], list[int]]:
    """Every candidate's tokens, and those that ended, best first."""
    every = {i: drawn(PROMPT, i, CHUNK) for i in range(COUNT)}
    growing = [i for i in every if not ended(every[i])]
    while growing:
        by_score = sorted(growing, key=lambda i: -reward_of(text_of(every[i])))
        growing = sorted(by_score[: math.ceil(len(growing) / 2)])
        for i in growing:
            more = min(CHUNK, MOST - len(every[i]))
            every[i] = every[i] + drawn(PROMPT + every[i], 0, more)
        growing = [i for i in growing if not ended(every[i])]
    whole = [i for i in every if ended(every[i])]
    return every, sorted(whole, key=lambda i: -reward_of(text_of(every[i])))


async def test_rejection_draws_just_these_tokens_and_its_texts_are_whole() -> None:
    every, best = expected()
    assert len(best) < COUNT  # some were stopped
    assert any(len(every[i]) > CHUNK for i in best)  # and some have grown
    async with start_gateway() as gateway:
        reply = await gateway.openai.chat.completions.create(
            model=f"policy:best-of-{COUNT}",
            messages=[{"role": "user", "content": "Where now"}],
            max_tokens=MOST,
            extra_body={"guerdon": {"strategy": "rejection", "chunk": CHUNK, "keep": 0.5}},
        )
        await until(lambda: gateway.sampler.server.lifecycle.accepted == 0)
        told = await gateway.sampler.metric("generated_tokens_total")
    report = reply.model_extra["guerdon"] if reply.model_extra else {}
    assert {each["candidate"]: each["tokens"] for each in report["scores"]} == {
        i: len(tokens) for i, tokens in every.items()
    }
    assert reply.choices[0].message.content == text_of(every[best[0]])
    assert numbers_in(reply.choices[0].message.content or "")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == sum(map(len, every.values())) == told
