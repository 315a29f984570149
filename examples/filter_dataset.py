"""Keep the conversations of a JSON Lines file whose last answer scores at least a threshold.

    guerdon serve reward --model helpful=runs/helpful
    python examples/filter_dataset.py conversations.jsonl kept.jsonl --threshold 0.5

A row is {"messages": [{"role": …, "content": …}, …]} and ends with the assistant's turn. Rows keep
their order. The output is there when all of it is, never in part.
"""

import argparse
import json
import sys
from pathlib import Path

from guerdon.client import Item, RewardClient


def main():
    args = parse_arguments()
    part = args.output.with_name(args.output.name + ".part")
    with (
        RewardClient(args.rewards, timeout=600) as rewards,
        args.input.open(encoding="utf-8") as lines,
        part.open("w", encoding="utf-8") as kept,
    ):
        model = rewards.get_model(args.reward_model).pinned  # the same one to the last row
        rows = {}  # lines that were sent and not yet written, by their place

        def items():
            for place, line in enumerate(line for line in lines if line.strip()):
                *prompt, answer = json.loads(line)["messages"]
                rows[place] = line
                yield Item(prompt, [answer["content"]])

        scores, written, count = {}, 0, 0
        results = rewards.score_stream(
            model, items(), in_flight=args.in_flight, priority="batch", reject_dropped_text=True
        )
        for result in results:  # as they finish: in any order
            if result.error is not None:
                sys.exit(f"row {result.index + 1}: {result.error}")
            (scores[result.index],) = result.values
            while written in scores:
                line, score = rows.pop(written), scores.pop(written)
                written += 1
                if score >= args.threshold:
                    count += 1
                    kept.write(json.dumps({**json.loads(line), "score": score}) + "\n")
    part.replace(args.output)
    print(f"kept {count} of {written} rows")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--rewards", default="localhost:50051", help="HOST:PORT of the rewards")
    parser.add_argument("--reward-model", default="helpful", help="its name on the reward server")
    parser.add_argument("--in-flight", type=int, default=64, help="rows sent and not yet answered")
    return parser.parse_args()


if __name__ == "__main__":
    main()
