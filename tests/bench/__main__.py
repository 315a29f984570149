"""`python -m tests.bench [NAME …]`: run benchmarks and print their tables.

`peers` has options of its own and takes the better part of an hour, so it runs only when it is
named: `python -m tests.bench peers --help`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from tests.bench import engine, gateway, kernels, learner, progress, serving, training
from tests.bench.common import BenchSettings, reward_checkpoint
from tests.bench.peers import __main__ as peers

BENCHMARKS: dict[str, Callable[[BenchSettings], None]] = {
    "engine": engine.run,
    "kernels": kernels.run,
    "throughput": serving.throughput,
    "latency": serving.latency,
    "overload": serving.overload,
    "gateway": gateway.run,
    "progress": progress.run,
    "learner": learner.run,
    "ppo": training.run,
    "overlap": training.overlap,
}


def main() -> None:
    """Run those that were named, or all but `peers`."""
    if sys.argv[1:2] == ["peers"]:
        raise SystemExit(peers.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--model",
        help="a reward model's folder (default: a fresh head on "
        "SmolLM2-135M-Instruct; the speed is the same)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--texts", type=int, default=256, help="responses per round")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    args = parser.parse_args()
    unknown = set(args.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: {', '.join(BENCHMARKS)}")
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.model) if args.model else reward_checkpoint(Path(scratch) / "model")
        settings = BenchSettings(
            folder=folder,
            rounds=args.rounds,
            texts=args.texts,
            dtype=args.dtype,
            console=console,
        )
        for name in args.names or BENCHMARKS:
            BENCHMARKS[name](settings)


if __name__ == "__main__":
    main()
