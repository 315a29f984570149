"""Draw n answers to a prompt, score them, print the best.

guerdon serve sampler --model smollm2-135m-instruct
guerdon serve reward --model helpful=runs/helpful
python examples/best_of_n.py "What is rain?" -n 8
"""

import argparse

from guerdon.client import GenerateItem, PolicyClient, RewardClient


def main():
    args = parse_arguments()
    with PolicyClient(args.sampler) as sampler:
        completions = sampler.generate(
            [GenerateItem(args.prompt, n=args.n, seed=args.seed)],
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            return_text=True,
        )
    # An answer that was cut off counts only where there is no whole one.
    answers = [c.text for c in completions if c.finished] or [c.text for c in completions]
    with RewardClient(args.rewards) as rewards:
        best = rewards.rank(args.reward_model, args.prompt, answers, top_n=1).ranking[0]
    print(f"{best.score.score:.3f}\t{answers[best.index]}")


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
    main()
