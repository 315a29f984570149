"""`make demo`: train a reward model, serve it over gRPC, score and rank real answers.

Every step is the command that a user would type, run as a process of its own; the
scores come back over a socket through `guerdon.client`. A finished model is used again
next time: `make demo DEMO_ARGS=--fresh` trains it anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from guerdon.client import GuerdonError, Item, RewardClient, ScoreResult
from guerdon.data import Message, parse_pair, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
GUERDON = Path(sys.executable).with_name("guerdon")
DATA = ROOT / "trainer" / "guerdon" / "trainer" / "demo_data"
BASE_MODEL = "smollm2-135m-instruct"
NAME = "helpful"

console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> None:
    """Run the demo; any failure is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--fresh", action="store_true", help="train again")
    parser.add_argument("--prompts", type=int, default=5, help="held-out prompts to show")
    args = parser.parse_args()
    started = time.monotonic()
    try:
        run(args.output, fresh=args.fresh, prompts=args.prompts)
    except (DemoFailed, GuerdonError) as error:
        console.print(f"[red]demo:[/red] {error}", highlight=False)
        sys.exit(1)
    console.print(f"\nThe whole demo took {time.monotonic() - started:.0f} s.")


class DemoFailed(Exception):
    """A step failed; the text says which and where to look."""


def run(output: Path, *, fresh: bool, prompts: int) -> None:
    """Train, serve, score, rank, stop."""
    heading(1, f"Train a reward model from {BASE_MODEL} on the project's own preference pairs")
    model = train(output / "reward-model", fresh=fresh)

    heading(2, "Serve it over gRPC")
    with serving(model, output / "server.log") as address, RewardClient(address) as client:
        describe(client)
        groups = held_out()
        items = [Item(group.prompt, group.answers) for group in groups]
        heading(3, f"Score the answers to {len(items)} held-out prompts, as one call")
        result = client.score(NAME, items)
        show_scores(groups, result, prompts)
        heading(4, "Rank the answers to one prompt, and time a call on the idle server")
        show_ranking(client, max(items, key=lambda item: len(item.responses)))
        show_latency(client, items)
        heading(5, "Stop the server (SIGTERM): it finishes what it accepted and leaves")
    console.print("\n[bold]Next[/bold]")
    console.print(f"  {relative(GUERDON)} serve reward --model {NAME}={relative(model)}")
    console.print(
        f"  {relative(GUERDON)} rank --model {NAME} --prompt 'What is rain?' "
        "--candidate 'Water that falls from clouds.' --candidate 'Rain rain rain rain'"
    )
    console.print(f"  look at {relative(model / 'plots')} and {relative(model / 'summary.json')}")


def heading(number: int, text: str) -> None:
    """A numbered line between the steps."""
    console.print(f"\n[bold cyan]{number}.[/bold cyan] [bold]{text}[/bold]", highlight=False)


def relative(path: Path) -> str:
    """A path as a user in the repository would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def train(folder: Path, *, fresh: bool) -> Path:
    """The trained model's folder: a finished one, or a new one."""
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if (folder / "guerdon.json").exists():
        console.print(f"Using {relative(folder)} of an earlier run (--fresh trains again).")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        str(GUERDON), "train", "reward", "--base", BASE_MODEL,
        "--train", str(DATA / "train.jsonl"), "--eval", str(DATA / "eval.jsonl"),
        "--output", str(folder),
    ]  # fmt: skip
    if folder.exists():  # an interrupted demo goes on where it was
        command.append("--resume")
    console.print(f"$ {' '.join([relative(GUERDON), *map(shorten, command[1:])])}", highlight=False)
    if subprocess.run(command, check=False).returncode != 0:
        raise DemoFailed("training failed; its message is above")
    return folder


def shorten(word: str) -> str:
    """A command's word with the repository's path taken off."""
    return relative(Path(word)) if word.startswith(str(ROOT)) else word


@contextlib.contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The real server in a process of its own; its gRPC address."""
    ready_file = log.with_name("server.json")
    ready_file.unlink(missing_ok=True)
    command = [
        str(GUERDON), "serve", "reward", "--model", f"{NAME}={model}",
        "--port", "0", "--http-port", "0", "--ready-file", str(ready_file),
    ]  # fmt: skip
    with log.open("w") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT)
        try:
            ports = wait_until_ready(process, ready_file, log)
            console.print(
                f"gRPC on 127.0.0.1:{ports['port']}, HTTP and metrics on "
                f"http://127.0.0.1:{ports['http_port']} (log: {relative(log)})",
                highlight=False,
            )
            yield f"127.0.0.1:{ports['port']}"
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            console.print(f"It left with exit code {code}.")
            if code != 0:
                raise DemoFailed(f"the server left with exit code {code}; see {log}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], file: Path, log: Path) -> dict[str, Any]:
    """The ports, once the server has written them."""
    deadline = time.monotonic() + 120
    with console.status("loading the model and checking it against plain transformers …"):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise DemoFailed(f"the server did not start: {' '.join(tail)}")
            if file.exists():
                ports: dict[str, Any] = json.loads(file.read_text())
                return ports
            time.sleep(0.05)
    raise DemoFailed(f"the server was not ready in 120 s; see {log}")


def describe(client: RewardClient) -> None:
    """What the server says of the model."""
    info = client.get_model(NAME)
    console.print(
        f"{info.name}@{info.revision[:12]}: {info.architecture}, {info.parameters / 1e6:.0f} M "
        f"parameters in {info.dtype} on {info.device}, {info.compute_mode} batches; the load-time "
        f"probes differ from plain transformers by at most {info.probe_max_difference:.1e}.",
        highlight=False,
    )


@dataclass
class Group:
    """The answers to one prompt, and the pairs among them that were judged."""

    prompt: list[Message]
    answers: list[str]
    judged: list[tuple[int, int]]  # (better, worse), as places in `answers`


def held_out() -> list[Group]:
    """The eval split, grouped by prompt."""
    groups: dict[str, Group] = {}
    for _, row in read_jsonl(DATA / "eval.jsonl"):
        pair = parse_pair(row)
        group = groups.setdefault(json.dumps(pair.prompt), Group(pair.prompt, [], []))
        places = []
        for turns in (pair.chosen, pair.rejected):
            text = turns[-1]["content"]
            if text not in group.answers:
                group.answers.append(text)
            places.append(group.answers.index(text))
        group.judged.append((places[0], places[1]))
    return list(groups.values())


def show_scores(groups: list[Group], result: ScoreResult, prompts: int) -> None:
    """A table of answers and scores, then what the call cost and how often it was right."""
    table = Table(show_lines=True, title="Held-out answers, best first")
    table.add_column("prompt", ratio=2)
    table.add_column("answer", ratio=4)
    table.add_column("score", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("reused", justify="right")
    for group, scored in list(zip(groups, result.items, strict=True))[:prompts]:
        order = sorted(range(len(group.answers)), key=lambda i: -scored.scores[i].score)
        for place, i in enumerate(order if len(order) <= 4 else order[:2] + order[-2:]):
            score = scored.scores[i]
            table.add_row(
                clip(group.prompt[-1]["content"], 90) if place == 0 else "",
                clip(group.answers[i], 130), f"{score.score:+.3f}",
                str(score.token_count), str(score.reused_tokens),
            )  # fmt: skip
    console.print(table)
    judged = [
        scored.scores[better].score > scored.scores[worse].score
        for group, scored in zip(groups, result.items, strict=True)
        for better, worse in group.judged
    ]
    responses = sum(len(group.answers) for group in groups)
    tokens = sum(score.token_count for item in result.items for score in item.scores)
    reused = sum(score.reused_tokens for item in result.items for score in item.scores)
    seconds = result.timing.total
    console.print(
        f"{responses} answers of {tokens} tokens in {seconds:.1f} s; {reused} prompt tokens were "
        f"computed for another answer already. {responses / seconds:.0f} answers/s, "
        f"{tokens / seconds:.0f} tokens/s.\n"
        f"The better answer of a judged pair scored higher in {sum(judged)} of {len(judged)} "
        f"({sum(judged) / len(judged):.0%}).",
        highlight=False,
    )


def clip(text: str, width: int) -> str:
    """Text on one line, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def show_ranking(client: RewardClient, item: Item) -> None:
    """The order of one prompt's answers."""
    result = client.rank(NAME, item.prompt, item.responses)
    for place, candidate in enumerate(result.ranking, start=1):
        text = item.responses[candidate.index]
        console.print(f"  {place}. {candidate.score.score:+.3f}  {clip(str(text), 110)}",
                      highlight=False, markup=False)  # fmt: skip


def show_latency(client: RewardClient, items: list[Item], calls: int = 20) -> None:
    """The median of single calls on the idle server, and what of it is the forward pass."""
    totals, computes = [], []
    for item in (items * calls)[:calls]:
        begun = time.perf_counter()
        timing = client.score(NAME, [Item(item.prompt, item.responses[:1])]).timing
        totals.append((time.perf_counter() - begun) * 1000)
        computes.append(timing.compute * 1000)
    console.print(
        f"One answer, one call, idle server: {statistics.median(totals):.1f} ms at the median, of "
        f"which {statistics.median(computes):.1f} ms forward pass.",
        highlight=False,
    )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
