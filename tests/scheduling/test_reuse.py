"""Batches are filled by what an engine with a prefix cache will have to compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.reward.engine.plan import lay_out
from guerdon.reward.engine.prefix_cache import BLOCK, PrefixCache
from guerdon.reward.scheduling.limits import BatchLimits
from guerdon.reward.scheduling.scheduler import Scheduler
from guerdon.reward.scheduling.units import Batch
from guerdon.reward.types import EncodedItem, PriorityClass

PROMPT, ANSWER = 400, 60
"""Tokens of each."""
TARGET = 512
"""Tokens of a batch before any was measured."""
RNG = np.random.default_rng(0)


def draw(length: int) -> list[int]:
    return RNG.integers(0, 1000, length).tolist()


def single(*tokens: int) -> EncodedItem:
    """One response alone, whose prefix is empty."""
    return item([], list(tokens))


def item(prefix: list[int], *suffixes: list[int]) -> EncodedItem:
    arrays = tuple(np.array(suffix, dtype=np.int32) for suffix in suffixes)
    return EncodedItem(np.array(prefix, dtype=np.int32), arrays, (0,) * len(suffixes))


def add(scheduler: Scheduler, *items: EncodedItem, cache_tokens: int = 100_000) -> None:
    for each in items:
        scheduler.add(
            "m",
            each,
            priority=PriorityClass.ONLINE,
            deadline=None,
            now=0.0,
            cache_tokens=cache_tokens,
        )


def batches(scheduler: Scheduler, engine: int = 0) -> list[Batch]:
    """All batches that an engine gets."""
    found = []
    while (batch := scheduler.next_batch(0.0, engine).batch) is not None:
        found.append(batch)
    return found


def sizes(scheduler: Scheduler, engine: int = 0) -> list[int]:
    """Responses of all batches that an engine gets."""
    return [batch.sequences for batch in batches(scheduler, engine)]


def answers(prompt: list[int], count: int) -> list[EncodedItem]:
    return [single(*prompt, *draw(ANSWER)) for _ in range(count)]


def test_answers_of_a_prompt_fill_a_batch_with_what_is_new_of_them() -> None:
    scheduler, prompt = Scheduler(BatchLimits()), draw(PROMPT)
    add(scheduler, *answers(prompt, 9))
    # The first batch computes the prompt, and later ones find it in the cache.
    assert sizes(scheduler) == [1, TARGET // ANSWER]
    add(scheduler, *answers(prompt, 8))
    assert sizes(scheduler) == [8]


def test_without_a_prefix_cache_nothing_is_foreseen() -> None:
    scheduler = Scheduler(BatchLimits())
    add(scheduler, *answers(draw(PROMPT), 3), cache_tokens=0)
    assert sizes(scheduler) == [1, 1, 1]


def test_all_tokens_still_have_to_fit_in_a_batch() -> None:
    scheduler, prompt = Scheduler(BatchLimits(max_batch_tokens=1000)), draw(PROMPT)
    add(scheduler, *answers(prompt, 5))
    assert sizes(scheduler) == [1, 2, 2]


def test_what_a_cache_has_no_room_for_is_not_expected() -> None:
    scheduler, first, second = Scheduler(BatchLimits()), draw(PROMPT), draw(PROMPT)
    one = PROMPT + ANSWER
    add(scheduler, *answers(first, 1), *answers(second, 1), cache_tokens=one)
    assert sizes(scheduler) == [1, 1]
    add(scheduler, *answers(first, 2), cache_tokens=one)
    assert sizes(scheduler) == [1, 1]
    add(scheduler, *answers(first, 2), cache_tokens=one)
    assert sizes(scheduler) == [2]


def test_each_engine_has_a_cache_of_its_own_and_may_lose_it() -> None:
    scheduler, prompt = Scheduler(BatchLimits()), draw(PROMPT)
    add(scheduler, *answers(prompt, 1))
    assert sizes(scheduler, engine=0) == [1]
    add(scheduler, *answers(prompt, 4))
    assert sizes(scheduler, engine=1) == [1, 3]
    scheduler.cache_emptied(1)
    add(scheduler, *answers(prompt, 4))
    assert sizes(scheduler, engine=0) == [4]
    add(scheduler, *answers(prompt, 4))
    assert sizes(scheduler, engine=1) == [1, 3]


def test_what_the_model_reads_from_is_always_computed() -> None:
    scheduler, prompt = Scheduler(BatchLimits()), draw(PROMPT)
    steps = (np.array([40, PROMPT]),)  # the first one ends early, as in a process reward model
    growing = [replace(each, readout=steps) for each in answers(prompt, 3)]
    add(scheduler, *growing)
    assert sizes(scheduler) == [1, 1, 1]


TOKENS = st.lists(st.integers(0, 1), max_size=2).map(
    lambda choices: [token for each in choices for token in [each] * (4 * BLOCK + 5)]
)
"""Few texts, which often begin alike."""
RESPONSES = st.lists(TOKENS.map(lambda tokens: [*tokens, 7]), min_size=1, max_size=3)


@settings(max_examples=200)
@given(st.lists(st.lists(st.tuples(TOKENS, RESPONSES), min_size=1, max_size=4), max_size=5))
def test_the_engine_computes_no_more_than_was_foreseen(
    rounds: list[list[tuple[list[int], list[list[int]]]]],
) -> None:
    """Against the engine's own layout of the batches, with a cache that has room for all.

    Where sequences part within a block, the engine may compute up to a block anew, once for what
    they have in common and once for what comes after.
    """
    scheduler, cache = Scheduler(BatchLimits()), PrefixCache(2**20, 1)
    for contents in rounds:
        add(scheduler, *(item(prefix, *responses) for prefix, responses in contents))
        for batch in batches(scheduler):
            with cache.batch():
                layout = lay_out(
                    [part.item for part in batch.parts],
                    lambda tokens: np.arange(len(tokens)),
                    share=True,
                    cache=cache,
                    first_read=lambda item, j: item.lengths()[j] - 1,
                )
            parted = 2 * BLOCK * (batch.sequences - 1)
            assert layout.stats.computed_tokens <= batch.new_tokens + parted
