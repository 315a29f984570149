"""The reward model of the demo: trained, asked, and shown."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.console import ROOT, clip, console, relative
from deploy.demo.processes import flags, run
from rich.table import Table

from guerdon.client import Item, RewardClient, ScoreResult
from guerdon.data import Message, parse_pair, read_jsonl

DATA = ROOT / "trainer" / "guerdon" / "trainer" / "demo_data"
BASE_MODEL = "smollm2-135m-instruct"


def train(folder: Path, *, fresh: bool) -> Path:
    """The trained model's folder: a finished one, or a new one."""
    if fresh and folder.exists():
        shutil.rmtree(folder)
    if (folder / "guerdon.json").exists():
        console.print(f"Using {relative(folder)} of an earlier run (--fresh trains again).")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    data = {"train": "helpful-train", "eval": "helpful-eval"}
    command = ["train", "reward", *flags({"base": BASE_MODEL, **data, "output": folder})]
    if folder.exists():  # an interrupted demo goes on where it was
        command.append("--resume")
    run(command, "training the reward model failed; its message is above")
    return folder


def describe(client: RewardClient, name: str) -> None:
    """What the server says of the model."""
    info = client.get_model(name)
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
    table = Table(expand=True, title="Held-out answers: the two best and the two worst")
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
                clip(group.answers[i], 130),
                f"{score.score:+.3f}",
                str(score.token_count),
                str(score.reused_tokens),
            )
        table.add_section()
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
        f"{responses} answers of {tokens:,} tokens in {seconds:.1f} s; {reused:,} prompt tokens "
        f"were computed for another answer already. {responses / seconds:.0f} answers/s, "
        f"{tokens / seconds:,.0f} tokens/s.\n"
        f"The better answer of a judged pair scored higher in {sum(judged)} of {len(judged)} "
        f"({sum(judged) / len(judged):.0%}).",
        highlight=False,
    )


def show_ranking(client: RewardClient, name: str, item: Item) -> None:
    """The order of one prompt's answers."""
    result = client.rank(name, item.prompt, item.responses)
    for place, candidate in enumerate(result.ranking, start=1):
        text = item.responses[candidate.index]
        console.print(
            f"  {place}. {candidate.score.score:+.3f}  {clip(str(text), 100)}",
            highlight=False,
            markup=False,
        )


def show_latency(client: RewardClient, name: str, items: list[Item], calls: int = 20) -> None:
    """The median of single calls on the idle server, and what of it is the forward pass."""
    totals, computes = [], []
    for item in (items * calls)[:calls]:
        begun = time.perf_counter()
        timing = client.score(name, [Item(item.prompt, item.responses[:1])]).timing
        totals.append((time.perf_counter() - begun) * 1000)
        computes.append(timing.compute * 1000)
    console.print(
        f"One answer, one call, idle server: {statistics.median(totals):.1f} ms at the median, of "
        f"which {statistics.median(computes):.1f} ms forward pass.",
        highlight=False,
    )
