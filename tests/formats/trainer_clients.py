"""Rewards by OpenRLHF's and miles' own code for remote reward models; prints them as JSON.

python trainer_clients.py URL TOKEN TOKENIZER PROMPT ANSWER

The policy's engine alone is a stand-in, whose completion is the answer.
"""

import asyncio
import json
import sys
from types import SimpleNamespace

from miles.rollout.rm_hub import async_rm
from miles.utils.types import Sample
from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer

URL, TOKEN, TOKENIZER, PROMPT, ANSWER = sys.argv[1:]


async def openrlhf(tokenizer) -> dict[str, object]:
    """What a rollout holds after its reward was fetched."""

    class Engine:
        async def generate(self, *_asked, **_more):
            ids = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
            output = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[output])

    executor = SingleTurnAgentExecutor(f"http://:{TOKEN}@{URL}/get_reward")
    sampling = SimpleNamespace(max_tokens=32, logprobs=None)
    rollout = await executor.execute(PROMPT, None, sampling, 256, tokenizer, Engine())
    return {name: rollout[name] for name in ("reward", "scores", "extra_logs")}


async def miles(prompt: object) -> object:
    """A sample's reward."""
    settings = SimpleNamespace(
        rm_url=f"http://:{TOKEN}@{URL}/rm", rm_type="remote_rm", custom_rm_path=None
    )
    return await async_rm(settings, Sample(prompt=prompt, response=ANSWER))


async def main() -> None:
    """Ask for both."""
    found = {
        "openrlhf": await openrlhf(AutoTokenizer.from_pretrained(TOKENIZER)),
        "miles": await miles(PROMPT),
    }
    print(json.dumps(found))


asyncio.run(main())
