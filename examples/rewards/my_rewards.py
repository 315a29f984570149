"""Rewards of one's own, with the signature of TRL's reward functions.

    cd examples/rewards
    guerdon train grpo … --verifier my_rewards:brief --verifier 2*my_rewards:tagged

A function gets lists, one entry for each completion of a prompt: `prompts`, `completions`,
`completion_ids`, and every other column of the prompts' rows. It gives as many finite numbers.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

WORDS = 20
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def text_of(completion: Any) -> str:
    """A completion is text where the prompt is text, and else a list of one message."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def brief(completions: list[Any], **columns: Any) -> list[float]:
    """1 up to 20 words, and less the more there are."""
    return [min(1.0, WORDS / max(1, len(text_of(c).split()))) for c in completions]


def tagged(completions: list[Any], answer: list[Any], **columns: Any) -> list[float]:
    """1 where <answer>…</answer> holds the column `answer` of the row."""
    found = [ANSWER.findall(text_of(completion)) for completion in completions]
    return [
        float(bool(texts) and texts[-1].strip() == str(right).strip())
        for texts, right in zip(found, answer, strict=True)
    ]


async def judged(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Ask something slow about all completions at once; here it only waits."""

    async def one(completion: Any) -> float:
        await asyncio.sleep(0.01)
        return float("please" in text_of(completion).lower())

    return await asyncio.gather(*map(one, completions))
