"""Asks, counts and draws."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import deploy.best_of_n
import httpx
from deploy.best_of_n import small_model
from deploy.best_of_n.figures import Answer, Cascade, Figures, as_rows, cascade, figures
from deploy.demo import reward
from deploy.demo.console import ROOT, DemoFailed, console, heading, minutes, relative
from deploy.demo.policy import BASE
from deploy.demo.processes import Served, check_gpu, leave_on_sigterm, serving
from rich.table import Table

from guerdon.client import Item, RewardClient
from guerdon.data import read_jsonl
from guerdon.trainer.common.data.rows import PROJECT_DATA
from guerdon.trainer.common.measuring.plots import CHOSEN, REJECTED, new_figure, save_figure
from guerdon.trainer.common.run_folder import write_whole

COUNTS = (1, 2, 4, 8, 16)
WAYS: Mapping[str, Mapping[str, Any]] = {
    **{f"best of {n}": {"best_of": n} for n in COUNTS},
    **{
        f"rejection, {chunk} tokens, keep {keep:g}": {
            "best_of": 16,
            "strategy": "rejection",
            "chunk": chunk,
            "keep": keep,
        }
        for chunk, keep in ((8, 0.5), (10, 0.5))
    },
}
"""What the gateway is asked for, by name."""
ONE, MOST = "best of 1", "best of 16"
CASCADE_DRAWS = 3
"""How often each question's candidates are drawn to hold a cascade against its large model."""
MARGINS = tuple(0.05 * step for step in range(81))
"""Margins of a cascade, in units of the small model's score."""
ALLOWED = 0.02
"""The part of the questions in which a cascade may serve another answer than its large model."""


def main() -> None:
    """Ask what was not asked yet; any failure is one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="make best-of-n", description=deploy.best_of_n.__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "best-of-n")
    parser.add_argument("--questions", type=int, default=50, help="held-out questions to ask")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--at-once", type=int, default=8, help="questions asked at a time")
    args = parser.parse_args()
    leave_on_sigterm()
    begun = time.monotonic()
    try:
        run(args)
    except DemoFailed as error:
        console.print(f"[red]best-of-n:[/red] {error}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped: the same command goes on where it was")
        sys.exit(130)
    console.print(f"\nThat took {minutes(time.monotonic() - begun)}.", highlight=False)


def run(args: argparse.Namespace) -> None:
    """Serve, ask, and show what came of it."""
    check_gpu()
    output = args.output.resolve()
    model = reward.train(args.demo.resolve() / "reward-model", fresh=False)
    rows = itertools.islice(read_jsonl(PROJECT_DATA["questions-eval"]), args.questions)
    questions = [row["prompt"] for _, row in rows]
    heading("Serve the policy, the reward model, and the gateway in front of them")
    with ExitStack() as stack:

        def start(*command: str, log: str = "") -> Served:
            return stack.enter_context(serving(command, output / f"{log or command[0]}.log"))

        sampler = start("sampler", "--model", BASE)
        rewards = start("reward", "--model", f"helpful={model}")
        gateway = start("gateway", "--sampler", sampler.grpc, "--reward", f"{rewards.grpc}/helpful")
        heading(f"Ask {len(questions)} held-out questions in {len(WAYS)} ways")
        answers = Answers(output / "answers.jsonl", gateway.http, args.max_tokens, args.at_once)
        served = {
            name: answers.of(name, way, questions, first_seed=1000 * place)
            for place, (name, way) in enumerate(WAYS.items())  # each has draws of its own
        }
        heading("Train the small model of a cascade, and hold it against the large one")
        small = small_model.train(
            output / "small",
            model,
            sampler=sampler.grpc,
            reward=f"{rewards.grpc}/helpful",
            max_tokens=args.max_tokens,
        )
        drawn = list(served[MOST])
        for number in range(1, CASCADE_DRAWS):
            first_seed, name = 1000 * (len(WAYS) + number), f"{MOST}, draw {number + 1}"
            drawn += answers.of(name, WAYS[MOST], questions, first_seed=first_seed)
        small_server = start("reward", "--model", f"small={small}", log="small")
        cascades = held_against(drawn, questions * CASCADE_DRAWS, small_server.grpc)
    found = {
        name: figures(served[name], served[ONE], served[MOST], n=count_of(way))
        for name, way in WAYS.items()
    }
    summary = {
        "ways": {name: dataclasses.asdict(each) for name, each in found.items()},
        "cascades": [dataclasses.asdict(each) for each in cascades],
    }
    write_whole(output / "summary.json", json.dumps(summary, indent=1))
    show(found)
    show_cascade(cascades)
    draw(found, cascades, output / "best-of-n.png")
    console.print(f"\nlook at {relative(output / 'best-of-n.png')}", highlight=False)


def held_against(answers: Sequence[Answer], questions: Sequence[str], small: str) -> list[Cascade]:
    """What cascades of all margins come to on the candidates that the large model has scored.

    Args:
        answers: all candidates of each question, with the large model's scores.
        questions: what they answer.
        small: HOST:PORT of the small model.
    """
    items = [Item(question, each.texts) for question, each in zip(questions, answers, strict=True)]
    with RewardClient(small, timeout=600) as client:  # nobody is in a hurry
        cheap = client.score("small", items).scores
    dear = [each.scores for each in answers]
    return [cascade(cheap, dear, margin) for margin in MARGINS]


def count_of(way: Mapping[str, Any]) -> int | None:
    """The candidates of a best-of-n; None for other ways."""
    return None if "strategy" in way else int(way["best_of"])


class Answers:
    """The gateway's answers, kept in a file."""

    def __init__(self, file: Path, url: str, max_tokens: int, at_once: int) -> None:
        self._file = file
        self._url = url
        self._max_tokens = max_tokens
        self._at_once = at_once
        self._known: dict[tuple[str, str], Answer] = {}
        for _, row in read_jsonl(file) if file.exists() else ():
            if row["max_tokens"] == max_tokens:
                lists = {name: tuple(row["served"][name]) for name in ("scores", "texts")}
                served = Answer(**{**row["served"], **lists})
                self._known[row["way"], row["question"]] = served

    def of(
        self, name: str, way: Mapping[str, Any], questions: Sequence[str], *, first_seed: int
    ) -> list[Answer]:
        """The answers to all questions, under a name; asks for those that are not there yet."""
        missing = [place for place, q in enumerate(questions) if (name, q) not in self._known]
        with console.status("") as status, httpx.Client(timeout=600) as client:

            def ask(place: int) -> tuple[str, Answer]:
                question = questions[place]
                return question, self._ask(client, way, question, seed=first_seed + place)

            with ThreadPoolExecutor(self._at_once) as threads:
                for done, (question, answer) in enumerate(threads.map(ask, missing)):
                    self._keep(name, question, answer)
                    status.update(f"{name}: {done + 1} of {len(missing)}")
        found = [self._known[name, question] for question in questions]
        mean = sum(each.score for each in found) / len(found)
        console.print(f"{name}: mean reward {mean:+.3f}", highlight=False)
        return found

    def _ask(
        self, client: httpx.Client, way: Mapping[str, Any], question: str, seed: int
    ) -> Answer:
        all_texts = way == WAYS[MOST]  # the cascade's; of the others one is enough
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._max_tokens,
            "seed": seed,
            "n": way["best_of"] if all_texts else 1,
            "guerdon": way,
        }
        reply = client.post(f"{self._url}/v1/chat/completions", json=body)
        if reply.status_code != 200:
            raise DemoFailed(f"the gateway refused a question: {reply.text}")
        told, choices = reply.json()["guerdon"], reply.json()["choices"]
        texts = {each["guerdon"]["candidate"]: each["message"]["content"] for each in choices}
        ended = [each for each in told["scores"] if each.get("ended", True)]
        return Answer(
            score=choices[0]["guerdon"]["score"],
            tokens=told["tokens"],
            seconds=told["seconds"]["total"],
            scores=tuple(each["score"] for each in ended),
            texts=tuple(texts[each["candidate"]] for each in ended) if all_texts else (),
        )

    def _keep(self, name: str, question: str, answer: Answer) -> None:
        self._known[name, question] = answer
        row = {"way": name, "question": question, "max_tokens": self._max_tokens}
        with self._file.open("a") as handle:
            handle.write(json.dumps({**row, "served": dataclasses.asdict(answer)}) + "\n")


def show(found: Mapping[str, Figures]) -> None:
    """The figures as a table."""
    table = Table(title="What the gateway served: means over the questions, 95 % intervals")
    for column in (
        "asked", "reward", "promised", "part of the gain", "tokens", "part", "seconds",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "asked" else "right")
    for row in as_rows(found):
        table.add_row(*row)
    console.print(table)


def show_cascade(cascades: Sequence[Cascade]) -> None:
    """The cheapest cascade that seldom serves another answer than the large model alone."""
    cheapest = next((each for each in cascades if each.disagreed < ALLOWED), None)
    if cheapest is None:
        console.print(f"No cascade served the large model's best in {1 - ALLOWED:.0%}.")
        return
    console.print(
        f"A cascade that asks the large model for {cheapest.asked:.0%} of the candidates (in "
        f"{cheapest.close:.0%} of the questions) serves another answer than its best in "
        f"{cheapest.disagreed:.1%} of the questions, and loses {cheapest.lost:.3f} of reward.",
        highlight=False,
    )


def draw(found: Mapping[str, Figures], cascades: Sequence[Cascade], to: Path) -> None:
    """Reward by candidates beside what the samples promise, and by tokens; what cascades ask."""
    figure, (by_count, by_tokens, by_asked) = new_figure(3)
    best = [found[f"best of {n}"] for n in COUNTS]
    means = [each.reward.mean for each in best]
    spread = [(each.reward.high or 0.0) - each.reward.mean for each in best]
    by_count.errorbar(COUNTS, means, spread, color=CHOSEN, marker="o", capsize=3, label="served")
    promised = [each.promised for each in best]
    by_count.plot(
        COUNTS, promised, color=REJECTED, linestyle="--", label="promised by 16 candidates"
    )
    by_count.set(xscale="log", xlabel="candidates", ylabel="mean reward, held-out questions")
    by_count.set_xticks(COUNTS, [str(n) for n in COUNTS])
    by_count.minorticks_off()
    by_count.legend(loc="lower right")
    tokens = [each.tokens for each in best]
    by_tokens.plot(tokens, means, color=CHOSEN, marker="o", label="best of n")
    for name, each in others(found):
        by_tokens.plot(each.tokens, each.reward.mean, "^", label=name)
    by_tokens.set(xlabel="tokens drawn for an answer", ylabel="mean reward, held-out questions")
    by_tokens.legend(loc="lower right", fontsize="small")
    asked, differed = zip(*((each.asked, each.disagreed) for each in cascades), strict=True)
    by_asked.plot(asked, differed, color=CHOSEN, marker=".", label="cascades, by margin")
    by_asked.axhline(ALLOWED, color=REJECTED, linestyle="--", label=f"{ALLOWED:.0%}")
    by_asked.set(xlabel="candidates that the large model is asked for, part of all")
    by_asked.set_ylabel("questions with another best answer, part of all")
    by_asked.legend(loc="upper right")
    save_figure(figure, to)


def others(found: Mapping[str, Figures]) -> Iterator[tuple[str, Figures]]:
    """The ways other than best-of-n."""
    return ((name, each) for name, each in found.items() if "strategy" in WAYS[name])


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
