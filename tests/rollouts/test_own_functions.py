"""Reward functions of the user's own: TRL's signature, and no reward that was not given."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.rollouts.support import tokenizer, write_rows

from guerdon.trainer.common.errors import DataError, OutputError, SettingsError, TrainingError
from guerdon.trainer.common.services import line_process
from guerdon.trainer.common.services.prompts import load_prompts
from guerdon.trainer.common.services.reward_function import FunctionVerifier
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.common.services.verifiers import parse_verifier

FUNCTIONS = '''
import asyncio, itertools, os, pathlib, signal, subprocess, sys, time

def length(completions, **kwargs):
    return [float(len(text)) for text in completions]

async def slow_length(prompts, completions, **kwargs):
    async def one(text):
        await asyncio.sleep(0)
        return len(text)
    return list(await asyncio.gather(*map(one, completions)))

def right(completions, solution, level=0):
    return [text == str(wanted) for text, wanted in zip(completions, solution, strict=True)]

def seen(prompts, completions, completion_ids, **kwargs):
    """Says what it was called with, on its standard output, where no answer is lost in it."""
    print("prompts", prompts, flush=True)
    os.write(1, b"and past Python\\n")
    assert sys.stdin.read() == ""
    pathlib.Path("seen.txt").write_text(repr((prompts, completions, completion_ids, kwargs)))
    return [0.0] * len(prompts)

def greedy(prompts, completions, tags):
    tags[0].append("mine")
    return [len(one) for one in tags]

def numbers(completions, **kwargs):
    import numpy
    return numpy.arange(len(completions), dtype=numpy.float32)

def raising(completions, **kwargs):
    raise ValueError("what\\nis this?")

def leaving(completions, **kwargs):
    sys.exit(3)

def gone(completions, **kwargs):
    os._exit(7)

def shot(completions, **kwargs):
    os.kill(os.getpid(), signal.SIGSEGV)

def killed(completions, **kwargs):
    with open("killed.txt", "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)

def killed_once(completions, **kwargs):
    if not pathlib.Path("killed.txt").exists():
        killed(completions)
    return [1.0] * len(completions)

def hanging(completions, **kwargs):
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path("child.txt").write_text(f"{child.pid}.")
    time.sleep(600)

async def waiting(completions, **kwargs):
    await asyncio.sleep(600)

def unordered(completions, **kwargs):
    return {float(len(text)) for text in completions}

def endless(completions, **kwargs):
    return itertools.repeat(1.0)

def short(completions, **kwargs):
    return [1.0] * (len(completions) - 1)

def gives(value):
    def function(completions, **kwargs):
        return [value] * len(completions)
    return function

none, nan, infinite, text, words = map(gives, (None, float("nan"), float("inf"), "1", [1]))

def no_list(completions, **kwargs):
    return 1.0

def positional(completions, /):
    return [0.0]

number = 3
class Rules:
    @staticmethod
    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]
'''


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's, in the directory that they work in."""
    monkeypatch.chdir(tmp_path)
    for name in ("queue", "copy"):  # what our own side of the process needs of Python
        (tmp_path / f"{name}.py").write_text("raise AssertionError\n")
    file = tmp_path / "my_rewards.py"
    file.write_text(FUNCTIONS)
    return file


def group(*texts: str, **row: Any) -> Group:
    turns = ({"role": "user", "content": "Why?"},)
    values: dict[str, Any] = {"text": "Why?"} | row
    task = Task(0, PromptRow(6, turns, **values), np.array([1, 2], dtype=np.int32))
    ids = np.array([5, 6], dtype=np.int32)
    return Group(
        task,
        [
            Sample(0, i, task.prompt_ids_P, ids, np.zeros(2, dtype=np.float32), ids, True, text)
            for i, text in enumerate(texts)
        ],
    )


@asynccontextmanager
async def source(*verifiers: str, seconds: float = 60.0) -> AsyncIterator[RewardSource]:
    made = RewardSource((), verifiers, patience=10.0, request_timeout=seconds)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def rewards(name: str, *texts: str, seconds: float = 60.0, **row: Any) -> list[float]:
    async with source(f"my_rewards:{name}", seconds=seconds) as made:
        return await made.totals(group(*texts, **row))


@pytest.mark.parametrize("name", ["length", "slow_length", "Rules.length"])
async def test_a_function_gives_the_rewards(name: str) -> None:
    async with source(f"0.5*my_rewards:{name}", "length:4") as made:
        for texts in (("a", "abc"), ("", "ab", "abcd")):
            scored = await made.score(group(*texts))
            parts = [sample.parts for sample in scored.samples]
            assert parts == [{f"my_rewards:{name}": len(t), "length:4": 0.5} for t in texts]
            assert [s.reward for s in scored.samples] == [len(t) / 2 + 0.5 for t in texts]


async def test_it_gets_the_columns_that_it_takes() -> None:
    row = {"solution": 42, "level": 3, "other": {"a": [1]}}
    assert await rewards("right", "42", "43", extra=row) == [1.0, 0.0]
    assert await rewards("numbers", "a", "b", "c") == [0.0, 1.0, 2.0]


async def test_what_it_gets_is_what_trl_gives(tmp_path: Path) -> None:
    """Lists as long as the prompts; messages where the prompt is messages, else text."""
    columns = {"answer": 3, "tags": ["x"]}
    assert await rewards("seen", "a", "b", extra=columns) == [0.0, 0.0]
    ids = [[5, 6], [5, 6]]
    many = {"answer": [3, 3], "tags": [["x"], ["x"]]}
    assert eval((tmp_path / "seen.txt").read_text()) == (["Why?"] * 2, ["a", "b"], ids, many)
    await rewards("seen", "a", text=None)
    turns, said = [{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "a"}]
    assert eval((tmp_path / "seen.txt").read_text()) == ([turns], [said], ids[:1], {})


async def test_rows_do_not_share_what_a_function_changes() -> None:
    assert await rewards("greedy", "a", "b", extra={"tags": []}) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", r"raised ValueError: what is this\? \(the prompt is row 7\)"),
        ("leaving", "raised SystemExit: 3"),
        ("gone", r"ended its process \(exit code 7\)"),
        ("shot", r"ended its process \(by SIGSEGV\)"),
        ("short", r"gave 1 rewards for 2 completions \(the prompt is row 7\)"),
        ("endless", "gave more rewards for 2 completions"),
        ("unordered", "returned a set, not a list"),
        ("none", "gave None for completion 1: every completion needs a number"),
        ("nan", r"gave nan for completion 1, not a finite number \(the prompt is row 7\)"),
        ("infinite", "gave inf for completion 1, not a finite number"),
        ("text", "gave '1' for completion 1, not a number"),
        ("words", r"gave '\[1\]' for completion 1, not a number"),
        ("no_list", "returned a float, not a list"),
    ],
)
async def test_what_is_no_reward_ends_the_run(name: str, reason: str) -> None:
    with pytest.raises(TrainingError, match=f"'my_rewards:{name}' {reason}"):
        await rewards(name, "a", "b")


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def child_of(folder: Path) -> int | None:
    """What the function that hangs has started, once it has."""
    file = folder / "child.txt"
    text = file.read_text() if file.exists() else ""
    return int(text[:-1]) if text.endswith(".") else None


def is_running(pid: int | None) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("name", ["hanging", "waiting"])
async def test_a_function_that_hangs_ends_the_run(name: str) -> None:
    message = r"gave no rewards within 0\.5 seconds \(--request-timeout\)"
    with pytest.raises(TrainingError, match=message):
        await rewards(name, "a", seconds=0.5)


async def test_a_run_that_ends_does_not_wait_for_a_function_that_hangs(tmp_path: Path) -> None:
    async with source("my_rewards:hanging", seconds=600.0) as made:
        scoring = asyncio.create_task(made.score(group("a")))
        await asyncio.to_thread(wait_until, lambda: child_of(tmp_path) is not None)
        scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    child = child_of(tmp_path)
    await asyncio.to_thread(wait_until, lambda: not is_running(child))  # it ends too


async def test_a_process_that_was_killed_is_asked_once_more(tmp_path: Path) -> None:
    assert await rewards("killed_once", "a") == [1.0]
    with pytest.raises(TrainingError, match=r"ended its process \(by SIGKILL\)"):
        await rewards("killed", "a")
    assert (tmp_path / "killed.txt").read_text() == "xxx"


async def test_its_process_ends_when_the_run_is_gone(tmp_path: Path) -> None:
    """Also in the middle of a call, with what this started: what it reads from has ended."""
    verifier = FunctionVerifier("my_rewards:hanging", 600.0)
    await verifier.start()
    process = verifier._process
    assert process is not None
    assert process.stdin is not None
    question = {"prompt": "Why?", "completions": ["a"], "completion_ids": [[5]], "row": {}}
    process.stdin.write(json.dumps(question).encode() + b"\n")
    process.stdin.flush()
    await asyncio.to_thread(wait_until, lambda: child_of(tmp_path) is not None)
    process.stdin.close()
    assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
    await asyncio.to_thread(wait_until, lambda: not is_running(child_of(tmp_path)))
    await verifier.close()


async def test_the_start_may_take_as_long_as_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module may load a large model; two minutes are the least that it has."""
    (tmp_path / "stuck.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(line_process, "START_SECONDS", 0.01)
    verifier = FunctionVerifier("stuck:f", 0.01)
    message = r"runs a reward function gave no sign of life in 0\.01 seconds"
    with pytest.raises(TrainingError, match=message):
        await verifier.start()
    await verifier.close()
    assert await rewards("length", "abc") == [3.0]


async def test_an_answer_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_process, "MAX_ANSWER_BYTES", 16)
    with pytest.raises(TrainingError, match="answers with more than 0 MiB"):
        await rewards("length", "a")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my_reward:length", "can't import 'my_reward': ModuleNotFoundError: No module named"),
        ("broken:f", "can't import 'broken': ZeroDivisionError: division by zero"),
        ("lacking:f", "can't import 'lacking': ModuleNotFoundError: No module named 'not_there'"),
        ("my_rewards:lenght", "'my_rewards' has no 'lenght'; did you mean 'length'"),
        ("my_rewards:number", "'number' of 'my_rewards' is a int, not a function"),
        ("builtins:max", "doesn't say what it takes: ValueError: no signature found"),
        ("my_rewards:positional", "takes 'completions' by position only"),
    ],
)
async def test_a_function_that_is_not_there(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "lacking.py").write_text("import not_there\n")
    with pytest.raises(SettingsError, match=f"verifier: {name}: {reason}"):
        async with source(name):
            pass


def check(path: str, name: str, **how: str) -> None:
    verifier = parse_verifier(name)
    try:
        verifier.check_rows(load_prompts(path, tokenizer(), max_prompt_tokens=64, **how))  # type: ignore[arg-type]
    finally:
        asyncio.run(verifier.verifier.close())


def test_rows_without_a_column_that_it_needs_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "solution": 1}, {"prompt": "b", "solutions": 2}]
    path = write_rows(tmp_path / "p.jsonl", rows)
    message = r"p\.jsonl, line 2: solution: is missing; did you mean 'solutions'\?.*:right"
    with pytest.raises(DataError, match=message):
        check(path, "my_rewards:right")
    check(path, "my_rewards:length")
    path = write_rows(tmp_path / "q.jsonl", [{"prompt": "a", "completions": 1}])
    with pytest.raises(DataError, match=r"line 1: completions: is what a reward function gets"):
        check(path, "my_rewards:length")


def change(file: Path) -> None:
    file.write_text(FUNCTIONS + "\n# another\n")


async def test_a_function_that_changed_is_not_mixed_in(functions: Path) -> None:
    async with source("my_rewards:length", "length:4") as made:
        state = made.state()
    assert state.keys() == {"my_rewards:length"}
    same = RewardSource((), ("my_rewards:length",), patience=1.0, request_timeout=60.0)
    same.load_state(state)
    await same.start()
    await same.close()
    change(functions)
    changed = RewardSource((), ("my_rewards:length",), patience=1.0, request_timeout=60.0)
    changed.load_state(state)
    with pytest.raises(OutputError, match="'my_rewards:length' has changed since the run began"):
        await changed.start()
    await changed.close()


async def test_a_package_and_what_it_takes_from_elsewhere(tmp_path: Path) -> None:
    """The file that defines a function counts, as well as the one that names it."""
    package = tmp_path / "scores"
    package.mkdir()
    (package / "__init__.py").write_text("from scores.inner import one\n")
    states = []
    for value in (1.0, 2.0):
        text = f"def one(completions, **kwargs):\n    return [{value}] * len(completions)\n"
        (package / "inner.py").write_text(text)
        os.utime(package / "inner.py", (value, value))  # Python's own cache goes by the time
        async with source("scores:one") as made:
            assert await made.totals(group("a")) == [value]
            states.append(made.state())
    assert states[0] != states[1]


async def test_many_groups_at_once_are_each_scored_by_their_own() -> None:
    async with source("my_rewards:length") as made:
        groups = [group("a" * i, "b" * (2 * i)) for i in range(40)]
        found = await asyncio.gather(*map(made.totals, groups))
    assert found == [[float(i), float(2 * i)] for i in range(40)]
