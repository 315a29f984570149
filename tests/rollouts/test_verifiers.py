"""Rewards by rule: what is right, what is not, and what does not end."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.support import tokenizer, write_rows

from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.common.services import sandbox as checking
from guerdon.trainer.common.services.prompts import load_prompts
from guerdon.trainer.common.services.reward_specs import split_weight
from guerdon.trainer.common.services.sandbox import Checker
from guerdon.trainer.common.services.types import PromptRow
from guerdon.trainer.common.services.verifiers import parse_verifier


def row(answer: str | None = None) -> PromptRow:
    return PromptRow(0, ({"role": "user", "content": "?"},), answer)


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("42", "The answer is 42.", 1),
        ("42", "42 is wrong, it is 43", 0),
        ("42", "12 + 30 = 42", 1),
        ("42", "", 0),
        ("42", "forty-two", 0),
        ("42", "142", 0),
        ("42", "4.2", 0),
        ("42", "42.0", 1),
        ("42", "42km", 1),
        ("-3", "x = -3", 1),
        ("-3", "x = \u22123", 1),
        ("3", "5-2=3", 1),
        ("3", "8-3", 1),
        ("-3", "8-3", 0),
        ("1234.5", "That makes 1,234.50 in all.", 1),
        ("1,234.50", "1234.5", 1),
        ("$5", "It costs $5.", 1),
        ("0.5", "It is .5", 1),
        ("4", "It is 3/4", 0),
        ("3", "It is 3/4", 0),
        ("3", "version 1.2.3", 0),
        ("1e3", "1000", 1),
        ("1", "1e99999999999999999999999", 0),
        ("Paris", "paris.", 1),
        ("Paris", "Let me think.\n\n**Paris**\n", 1),
        ("Paris", "The capital is Paris", 0),
        ("New  York", "new york!", 1),
        ("3/4", "3/4", 1),
    ],
)
def test_exact(answer: str, text: str, right: int) -> None:
    assert parse_verifier("exact").verifier.verify(row(answer), text, 1) == right


@pytest.mark.parametrize(
    ("tokens", "worth"), [(0, 0.0), (5, 0.5), (10, 1.0), (15, 0.5), (20, 0.0), (99, 0.0)]
)
def test_length(tokens: int, worth: float) -> None:
    assert parse_verifier("length:10").verifier.verify(row(), "", tokens) == worth


def test_maths_and_regex_answer_and_survive_what_never_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maths = parse_verifier("maths").verifier
    table = [
        ("1/2", "so it is $\\frac{1}{2}$", 1),
        ("\\frac{1}{2}", "The answer is 0.5", 1),
        ("42", "41", 0),
        ("x+1", "$1+x$", 1),
        ("x+1", "$x+2$", 0),
        ("{1,2}", "$\\{2,1\\}$", 1),
        ("42", "", 0),
        ("42", "no idea", 0),
        ("42", "$9^{9^{9^{9}}}$", 0),
        ("42", "it is 42", 1),
    ]
    checker, patterns = Checker("maths", seconds=2.0), Checker("regex", seconds=2.0)
    monkeypatch.setattr(maths, "_checker", checker)
    assert [maths.verify(row(a), text, 1) for a, text, _ in table] == [w for *_, w in table]
    assert checker.gave_up == 1
    assert patterns.ask("(a+)+$", "a" * 40 + "b") is None
    assert patterns.ask(r"\d{3}", "abc 123\ndef") is True
    assert patterns.ask(r"\d{4}", "abc 123") is False
    assert patterns.gave_up == 1
    asyncio.run(maths.close())
    patterns.close()


def kill_child(checker: Checker) -> None:
    process = checker._process
    assert process is not None
    process.kill()
    process.wait()


def test_a_process_that_was_killed_is_started_again_and_asked_again() -> None:
    checker = Checker("regex")
    assert checker.ask("a", "a") is True
    kill_child(checker)
    assert checker.ask("a", "a") is True
    assert checker.gave_up == 0
    checker.close()


def test_no_reward_is_made_up_when_nobody_can_check(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = Checker("regex")
    start = checker._start

    def killed() -> Any:
        process = start()
        kill_child(checker)
        return process

    monkeypatch.setattr(checker, "_start", killed)
    with pytest.raises(checking.TrainingError, match="killed, or stood still, twice"):
        checker.ask("a", "a")


def test_a_text_that_breaks_the_process_has_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As GMP aborts where it gets no memory."""
    checker, starts = Checker("regex"), []
    start = checker._start

    def aborted() -> Any:
        process = start()
        starts.append(process)
        process.send_signal(signal.SIGABRT)
        process.wait()
        return process

    monkeypatch.setattr(checker, "_start", aborted)
    assert checker.ask("a", "a") is None
    assert (checker.gave_up, len(starts)) == (1, 2)


def test_a_busy_machine_makes_no_check_too_long() -> None:
    """What counts is the check's own processor time: a process that gets none loses nothing."""
    checker = Checker("regex", seconds=0.5)
    assert checker.ask("a", "a") is True
    process = checker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    timer = threading.Timer(1.5, process.send_signal, [signal.SIGCONT])
    timer.start()
    assert checker.ask("a", "a") is True
    timer.join()
    checker.close()


def test_a_verifier_that_cannot_start_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking.sys, "executable", "/bin/false")
    with pytest.raises(checking.TrainingError, match="can't be started"):
        Checker("regex").ask("a", "a")


@pytest.mark.parametrize(
    ("spec", "name", "weight"),
    [
        ("exact", "exact", 1.0),
        ("0.5*maths", "maths", 0.5),
        ("-1*length:8", "length:8", -1.0),
        (r"regex:^\d*$", r"regex:^\d*$", 1.0),
        (r"2*regex:3*4", r"regex:3*4", 2.0),
        (".5*regex:a:b", "regex:a:b", 0.5),
    ],
)
def test_specifications(spec: str, name: str, weight: float) -> None:
    found = parse_verifier(spec)
    assert (found.name, found.weight) == (name, weight)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("exacty", "'exacty' is not one of exact, maths, regex:PATTERN, length:TOKENS, MODULE:F"),
        ("exact:3", "exact takes no argument"),
        ("maths:", "maths takes no argument"),
        ("regex", "regex needs an argument"),
        ("regex:(", r"regex: '\(': missing"),
        ("length:", "length needs an argument"),
        ("length:0", "TOKENS must be a positive integer"),
        ("length:-1", "TOKENS must be a positive integer"),
        ("0*exact", "must be finite and not 0"),
        ("1e999*exact", "must be finite and not 0"),
        ("x*exact", "is not one of"),
    ],
)
def test_wrong_specifications(spec: str, reason: str) -> None:
    with pytest.raises(SettingsError, match="verifier: .*" + reason):
        parse_verifier(spec)


def test_weights_are_only_numbers_in_front() -> None:
    assert split_weight("host:1/a*b", "reward") == (1.0, "host:1/a*b")
    assert split_weight("2*host:1/m", "reward") == (2.0, "host:1/m")


def test_prompts_without_what_a_verifier_needs_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "!"}, "", {"prompt": "b"}])
    prompts = load_prompts(path, tokenizer(), max_prompt_tokens=64)
    message = re.escape("p.jsonl, line 1: answer: '!' holds nothing to compare (--verifier exact)")
    with pytest.raises(DataError, match=message):
        parse_verifier("exact").check_rows(prompts)
    path = write_rows(tmp_path / "q.jsonl", [{"prompt": "a", "answer": "1"}, "", {"prompt": "b"}])
    prompts = load_prompts(path, tokenizer(), max_prompt_tokens=64)
    with pytest.raises(DataError, match=r"q\.jsonl, line 3: answer: is missing"):
        parse_verifier("2*exact").check_rows(prompts)
    parse_verifier("length:4").check_rows(prompts)
