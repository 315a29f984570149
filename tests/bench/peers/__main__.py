"""Time this server beside its peers: `python -m tests.bench peers --help`."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from tests.bench.common import DATA, reward_checkpoint
from tests.bench.peers import texts, workloads
from tests.bench.peers.contender import Failed, Setup
from tests.bench.peers.contenders import CONTENDERS, Guerdon, Reference
from tests.bench.peers.field import Field, check
from tests.bench.peers.report import Report

WORKLOADS = {
    "a": "single-sample calls of real conversations (--pairs), 1, 8 and 64 in flight",
    "b": "16 responses of 256 tokens to one prompt of 1,024 (--group), as one call",
    "c": "an open loop at 50, 70, 90 and 200 % of each server's capacity: goodput, percentiles",
    "d": "online calls at 10 % of the capacity, beside bulk work that saturates the server",
    "e": "a file of --sequences conversations, once, whatever --rounds is",
    "f": "start-up time, and memory after 64 calls",
    "g": "8 answers to each of 8 prompts, each in a call of its own, at random within 5 seconds",
}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
"""How far scores may be from those of plain transformers in float32."""
FIRST = next(iter(CONTENDERS))
CHECKED = 16
CHECK_SEED = 2**32 - 1
HELP = f"""
Start every contender in processes of its own on one model, and time them by turns: whoever isn't
timed is stopped (SIGSTOP). Before that, all scores are compared with plain transformers in float32;
who differs by more than {TOLERANCE["float32"]} in float32, or {TOLERANCE["bfloat16"]} in bfloat16,
is out. Prints ratios to this server, and writes them to --output as JSON and PNG.

workloads:
""" + "\n".join(f"  {name}  {text}" for name, text in WORKLOADS.items())
EXAMPLES = """
examples:
  make bench BENCH_ARGS="peers"                         a, b and f in float32
  make bench BENCH_ARGS="peers --dtype bfloat16"
  make bench BENCH_ARGS="peers --workloads c,d --rounds 3"
  make bench BENCH_ARGS="peers --workloads e --sequences 2000 --contenders vllm"

Does everything start and agree?
  make bench BENCH_ARGS="peers --rounds 1 --texts 8 --group 4,32,128"
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        prog="python -m tests.bench peers",
        usage="%(prog)s [options]",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--workloads", type=names(WORKLOADS), default=["a", "b", "f"], metavar="a,b,…"
    )
    others = list(CONTENDERS)[1:]
    peers = [name for name in others if not issubclass(CONTENDERS[name], Guerdon)]
    found.add_argument(
        "--contenders",
        type=names(others),
        default=peers,
        metavar="NAME,…",
        help=f"beside this server: some of {', '.join(others)} ({','.join(peers)})",
    )
    found.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32")
    found.add_argument("--rounds", type=positive, default=5, help="turns of each (5)")
    found.add_argument("--texts", type=positive, default=128, help="calls in a turn of a (128)")
    found.add_argument(
        "--group",
        type=group,
        default=texts.Group(),
        metavar="R,T,P",
        help="b's responses, tokens of each, and tokens of the prompt (16,256,1024)",
    )
    found.add_argument("--seconds", type=positive, default=20, help="length of a turn of c, d (20)")
    found.add_argument(
        "--answers", type=positive, default=1, help="to rank in each of d's online calls (1)"
    )
    found.add_argument("--sequences", type=positive, default=20_000, help="in e's file (20000)")
    found.add_argument(
        "--threads",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        help="OMP_NUM_THREADS of each contender (as many as there are cores)",
    )
    found.add_argument(
        "--pairs", type=Path, default=DATA, help="preference pairs to send (the demo's)"
    )
    found.add_argument(
        "--model", type=Path, help="a reward model's folder (a fresh head on SmolLM2-135M-Instruct)"
    )
    found.add_argument("--output", type=Path, default=Path("runs/peers"), help="(runs/peers)")
    return found


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """An option that takes some of the known names, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := sorted(set(chosen) - set(known)):
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)} is unknown, choose from {', '.join(known)}"
            )
        return [name for name in known if name in chosen]

    return parse


def group(text: str) -> texts.Group:
    """An option that is the shape of b."""
    sizes = [positive(size) for size in text.split(",")]
    if len(sizes) != 3:
        raise argparse.ArgumentTypeError(f"{text} is not three numbers, such as 16,256,1024")
    return texts.Group(*sizes)


def positive(text: str) -> int:
    """An option that is a whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workloads that were asked for."""
    args = parser().parse_args(arguments)
    # SIGTERM as Ctrl-C, which is ignored in the background: the contenders are ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    texts.pairs = args.pairs
    console = Console(width=140, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or reward_checkpoint(Path(scratch) / "model")
        setup = Setup(folder, args.dtype, args.threads)
        say = partial(console.print, markup=False)
        field = Field([CONTENDERS[name](setup) for name in (FIRST, *args.contenders)], say)
        conditions = (
            f"{args.dtype}, {args.threads} of {os.cpu_count()} cores each, {args.rounds} rounds, "
            f"{args.texts} texts of {args.pairs.name}"
        )
        if args.answers > 1:
            conditions += f", {args.answers} answers in an online call"
        report = Report(console, field, conditions)
        plan = workloads.Plan(
            args.rounds, args.texts, args.seconds, args.sequences, args.group, args.answers
        )
        try:
            run(field, report, plan, args.workloads, setup)
        except Failed as error:
            say(str(error))
            return 1
        except KeyboardInterrupt:
            console.print("interrupted: nothing is written")
            return 130
        finally:
            field.stop()
        report.end(args.output, f"peers-{args.dtype}")
    return 0


def run(field: Field, report: Report, plan: workloads.Plan, asked: list[str], setup: Setup) -> None:
    """All workloads in turn, each with its table.

    Raises:
        Failed: plain transformers could not say what is right.
    """
    if "f" in asked:
        report.starts(workloads.starts(field, plan))
    if asked == ["f"]:
        return
    checked = [
        *texts.real_calls(CHECKED, "check"),
        texts.group_call(plan.group, CHECK_SEED),
    ]
    tolerance = TOLERANCE[setup.dtype]
    expected = Reference(Setup(setup.folder, "float32", setup.threads)).once(checked)
    field.start(checked[0])
    apart = check(field, checked, expected, tolerance)
    if cases := workloads.cases(plan, asked):
        report.closed(workloads.closed_loops(field, plan, cases, tolerance), apart)
    if "c" in asked:
        report.open(workloads.open_loops(field, plan))
    if "d" in asked:
        report.beside(workloads.beside_batch(field, plan))
    if "g" in asked:
        report.one_by_one(workloads.one_by_one(field, plan))
    if "e" in asked:
        report.file(workloads.from_file(field, plan), plan.sequences)


if __name__ == "__main__":
    raise SystemExit(main())
