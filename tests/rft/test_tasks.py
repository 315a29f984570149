"""The prompts files that come with the project."""

from __future__ import annotations

import re
from typing import Any

import pytest

from guerdon.data import read_jsonl
from guerdon.trainer.common.services.prompts import parse_row
from guerdon.trainer.demo_data import make as preferences
from guerdon.trainer.rl.tasks import make

SIZES = {
    "arithmetic-train.jsonl": 400,
    "arithmetic-eval.jsonl": 100,
    "questions-train.jsonl": 150,
    "questions-eval.jsonl": 50,
}


def rows(name: str) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(make.HERE / name)]


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_the_files_are_what_the_program_makes(name: str, size: int) -> None:
    made = make.everything()
    assert made.keys() == SIZES.keys()
    assert (make.HERE / name).read_text("utf-8") == make.as_jsonl(made[name])
    assert len(rows(name)) == size
    for index, row in enumerate(rows(name)):
        assert parse_row(row, index).turns[-1]["role"] == "user"


def sums(split: str) -> list[tuple[int, int]]:
    """The numbers of each row, after its answer was computed anew."""
    found = []
    for row in rows(f"arithmetic-{split}.jsonl"):
        asked = re.fullmatch(r"(\d+) \+ (\d+)", row["prompt"][-1]["content"])
        assert asked is not None
        a, b = int(asked[1]), int(asked[2])
        assert row["answer"] == str(a + b)
        shown = [turn["content"] for turn in row["prompt"]]
        assert shown[1:3] == ["5 + 13", "5 + 13 = 18"]
        found.append((a, b))
    return found


def test_sums_are_right_and_disjoint() -> None:
    train, held_out = sums("train"), sums("eval")
    for split in (train, held_out):
        assert len(set(split)) == len(split)
        assert (5, 13) not in {tuple(sorted(pair)) for pair in split}
        assert {number for pair in split for number in pair} <= set(range(1, 31))
    assert not {frozenset(pair) for pair in train} & {frozenset(pair) for pair in held_out}


def test_sums_of_both_splits_are_alike() -> None:
    means = [sum(map(sum, sums(split))) / make.ARITHMETIC[split] for split in ("train", "eval")]
    assert abs(means[0] - means[1]) < 2.5  # standard error of the smaller one: 1.2


def test_questions_are_disjoint_and_new_to_the_reward_model() -> None:
    train, held_out = (
        {row["prompt"] for row in rows(f"questions-{split}.jsonl")} for split in ("train", "eval")
    )
    assert len(train) == 150
    assert len(held_out) == 50
    assert not train & held_out
    judged = {
        row["prompt"][0]["content"] for _, row in read_jsonl(preferences.HERE / "train.jsonl")
    }
    assert not held_out & judged
    assert not {question.prompt for question in preferences.read_questions()} & {
        prompt for _, prompt in make.new_questions()
    }


def test_no_question_is_harmful() -> None:
    harmful = {question.prompt for question in preferences.read_questions() if question.harmful}
    for split in ("train", "eval"):
        assert not harmful & {row["prompt"] for row in rows(f"questions-{split}.jsonl")}


def test_both_question_files_hold_every_kind() -> None:
    kinds = {question.category for question in preferences.read_questions()} - {"safety"}
    for split in ("train", "eval"):
        assert {row["category"] for row in rows(f"questions-{split}.jsonl")} == kinds


def test_the_card_says_what_it_is_not() -> None:
    card = (make.HERE / "README.md").read_text("utf-8")
    assert card.count("What it is not") == 2
    for name, size in SIZES.items():
        assert f"`{name}` ({size} rows)" in card
