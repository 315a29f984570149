"""The prefix cache behind a real server: what comes again is not computed again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.engine.support import words
from tests.support.load import metrics, total
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import Item, RewardClient, ScoreResult, TokenIds
from guerdon.reward.engine.prefix_cache import BLOCK

PROMPT, ANSWER = 400, 60
"""Tokens of each."""
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("m"), "llama", max_positions=512)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server({"m": folder}, dtype="float32", prefix_cache_mib=8) as running:
        yield running


def draw(length: int) -> TokenIds:
    return TokenIds(words(RNG, length))


def counted(server: RunningServer, name: str) -> float:
    """What a counter of tokens says so far."""
    return total(metrics(server.url), f"guerdon_{name}_tokens_total", 'model="m"')


def computed(replies: Sequence[ScoreResult]) -> int:
    """Tokens that all these replies cost together."""
    scores = [score for reply in replies for item in reply.items for score in item.scores]
    return sum(score.token_count - score.reused_tokens for score in scores)


def test_the_log_says_how_many_tokens_it_holds(server: RunningServer) -> None:
    token_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, key heads, head size, float32
    assert f", prefix cache of {(8 << 20) // token_bytes:,} tokens\n" in server.log()


def test_a_call_that_comes_again_is_taken_out_of_the_cache(server: RunningServer) -> None:
    item = Item(draw(PROMPT), [draw(ANSWER) for _ in range(3)])
    tokens = PROMPT + 3 * ANSWER
    with RewardClient(server.address) as client:
        first = client.score("m", [item])
        assert computed([first]) == tokens
        before = counted(server, "cached")
        second = client.score("m", [item])
    for score in second.items[0].scores:
        assert PROMPT + ANSWER - BLOCK <= score.reused_tokens < PROMPT + ANSWER
    assert counted(server, "cached") - before == tokens - computed([second])
    np.testing.assert_allclose(second.scores, first.scores, atol=1e-5, rtol=0)


def test_answers_sent_one_by_one_cost_little_more_than_groups(server: RunningServer) -> None:
    """Whatever the batches are, with one engine.

    Every answer but a prompt's first shares the prompt with another of its batch, or finds it in
    the cache, but for a part that fills no block: at most 15 tokens, where the bound allows 33.
    """
    items = [Item(prompt, [draw(ANSWER)]) for prompt in [draw(PROMPT) for _ in range(8)] * 8]
    random.Random(0).shuffle(items)
    before = counted(server, "computed")
    with RewardClient(server.address) as client, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda item: client.score("m", [item]), items))
    assert computed(replies) <= 1.3 * 8 * (PROMPT + 8 * ANSWER)
    assert counted(server, "computed") - before == computed(replies)


def test_deterministic_reuses_nothing(folder: Path) -> None:
    item = Item(draw(PROMPT), [draw(ANSWER) for _ in range(2)])
    with (
        running_server({"m": folder}, dtype="float32", deterministic=True) as server,
        RewardClient(server.address) as client,
    ):
        first, second = (client.score("m", [item]) for _ in range(2))
        assert computed([first]) == computed([second]) == 2 * (PROMPT + ANSWER)
        assert counted(server, "cached") == 0
        assert "prefix cache" not in server.log()
    assert second.scores == first.scores
