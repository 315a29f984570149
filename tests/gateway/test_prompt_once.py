"""A prompt is computed once by the reward model, whenever the answers to it end."""

from __future__ import annotations

from pathlib import Path

from tests.support.load import metrics, total
from tests.support.sampler_service import start_sampler
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import RewardClient
from guerdon.reward.engine.prefix_cache import BLOCK

from .support import gateway_before

PROMPT = "Mountains are high. " * 60
ANSWER_TOKENS = 64
"""More than any answer has, with what the template writes around it."""
BEST_OF = 5
"""Answers of the policy's formula: none is as long as another."""


def computed(server: RunningServer) -> float:
    return total(metrics(server.url), "guerdon_computed_tokens_total", 'model="m"')


async def test_a_prompt_is_computed_once_for_answers_that_end_one_after_the_other(
    tmp_path: Path,
) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "llama", max_positions=2048)
    with running_server({"m": checkpoint}, dtype="float32", prefix_cache_mib=8) as rewards:
        async with (
            start_sampler() as sampler,
            gateway_before(sampler, f"{rewards.address}/m") as gateway,
        ):
            sampler.engine.behaviour.seconds_per_token = 0.02  # beyond what is scored together
            messages = [{"role": "user", "content": PROMPT}]
            body = {"model": "policy", "messages": messages, "best_of": BEST_OF, "n": BEST_OF}
            before = computed(rewards)
            reply = (await gateway.http.post("/v1/chat/completions", json=body)).json()
            tokens = computed(rewards) - before
        answers = [choice["message"]["content"] for choice in reply["choices"]]
        with RewardClient(rewards.address) as client:
            scores = client.score_one("m", messages, answers).scores
    assert len(set(answers)) == BEST_OF
    lengths = [score.token_count for score in scores]
    assert max(lengths) - min(lengths) < ANSWER_TOKENS
    # All but the first share the prompt, except for what fills no block of the cache.
    assert tokens <= max(lengths) + BEST_OF * (ANSWER_TOKENS + BLOCK) < sum(lengths) / 2
