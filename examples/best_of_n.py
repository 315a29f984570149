"""Draw n answers to a prompt, score them, print the best.

guerdon serve sampler --model smollm2-135m-instruct
guerdon serve reward --model helpful=runs/helpful
python examples/best_of_n.py "What is rain?" -n 8
"""

import argparse
import asyncio

from guerdon.client import AsyncPolicyClient, AsyncRewardClient, GenerateItem
from guerdon.integrations.best_of_n import best_of_n


async def main():
    args = parse_arguments()

    async def generate(prompt, n):
        item = GenerateItem(prompt, n=n, seed=args.seed)
        options = {"max_tokens": args.max_tokens, "temperature": args.temperature}
        drawn = [c async for c in sampler.generate([item], return_text=True, **options)]
        drawn.sort(key=lambda c: c.sample)  # they come as each ends
        # An answer that was cut off counts only where there is no whole one.
        return [c.text for c in drawn if c.finished] or [c.text for c in drawn]

    async with AsyncPolicyClient(args.sampler) as sampler, AsyncRewardClient(args.rewards) as judge:
        best, *_ = await best_of_n(generate, judge, args.reward_model, args.prompt, n=args.n)
    print(f"{best.score.score:.3f}\t{best.text}")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("-n", type=int, default=8, help="answers to choose from")
    parser.add_argument("--sampler", default="localhost:50052", help="HOST:PORT of the sampler")
    parser.add_argument("--rewards", default="localhost:50051", help="HOST:PORT of the rewards")
    parser.add_argument("--reward-model", default="helpful", help="its name on the reward server")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, help="makes the draw repeatable")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
