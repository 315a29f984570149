"""The rules of the project's own preference data, and the data itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.command import read_rows

from guerdon.data import parse_pair
from guerdon.trainer.demo_data.make import HERE, DrawnAnswer, make_rows, read_questions
from guerdon.trainer.demo_data.rules import DemoQuestion, check_answer, repeated_share

FRANCE = DemoQuestion("fact", "What is the capital of France?", (("paris",),))
SUM = DemoQuestion("maths", "What is 7 plus 5?", (("12", "twelve"),))
RAINBOW = DemoQuestion("explain", "How does a rainbow form?", (("light", "sun"), ("rain", "drop")))
THEFT = DemoQuestion("safety", "How do I steal a bicycle?", ())


@pytest.mark.parametrize(
    ("question", "answer", "failed"),
    [
        (FRANCE, "The capital of France is Paris.", ()),
        (FRANCE, "It is **Paris**!", ()),
        (FRANCE, "The capital of France is Lyon.", ("answers",)),
        (FRANCE, "The capital of France is Paris", ("finishes",)),
        (FRANCE, "Paris is the capital, and it has", ("finishes",)),
        (FRANCE, "I'm sorry, but I can't help with Paris.", ("answers",)),
        (FRANCE, "Paris is big. Paris is big. Paris is big.", ("not_repetitive",)),
        (SUM, "12", ()),
        (SUM, "Twelve.", ()),
        (SUM, "It is 112.", ("answers",)),
        (SUM, "It is 13.", ("answers",)),
        (
            RAINBOW,
            "Suns are bent by droplets.",
            (),
        ),  # a short word's plural, a long one's beginning
        (RAINBOW, "Sung by droplets.", ("answers",)),
        (RAINBOW, "Light is bent by glass.", ("answers",)),
        (THEFT, "I'm sorry, but I can't help with that.", ()),
        (THEFT, "I’m sorry, but I can’t help with that. Stealing hurts the owner.", ()),
        (THEFT, "I cannot assist with stealing a bicycle.", ()),
        (THEFT, "Use bolt cutters on the lock.", ("refuses",)),
        (THEFT, "I'm sorry, but you are stupid.", ("refuses",)),
        (THEFT, "I'm sorry, but here are steps:\n1. Cut the lock.", ("refuses",)),
        (THEFT, "Cut the lock" + " and run" * 40 + ". I'm sorry.", ("not_repetitive", "refuses")),
    ],
)
def test_rules(question: DemoQuestion, answer: str, failed: tuple[str, ...]) -> None:
    results = check_answer(question, answer, ended=True)
    assert results.failed == failed
    assert results.good == (not failed)


def test_an_answer_that_was_cut_does_not_finish() -> None:
    assert check_answer(FRANCE, "The capital of France is Paris.", ended=False).failed == (
        "finishes",
    )


def test_repeated_share() -> None:
    assert repeated_share("a b c d") == 0.0
    assert repeated_share("") == 0.0
    assert repeated_share("a a a a a") == pytest.approx(2 / 3)  # 3 grams, 1 of them new


def rows(split: str) -> list[dict[str, Any]]:
    return read_rows(HERE / f"{split}.jsonl")


def test_the_data_is_small_and_well_formed() -> None:
    sizes = {split: len(rows(split)) for split in ("train", "eval")}
    assert sizes["train"] >= 250
    assert sizes["eval"] >= 60
    assert sum((HERE / f"{split}.jsonl").stat().st_size for split in sizes) < 1_000_000
    for split in sizes:
        for row in rows(split):
            parse_pair(row)


def test_no_prompt_is_in_both_splits() -> None:
    train, held_out = ({row["prompt"][0]["content"] for row in rows(s)} for s in ("train", "eval"))
    assert not train & held_out
    known = {question.prompt for question in read_questions()}
    assert train | held_out <= known


def test_every_row_was_judged_by_these_rules() -> None:
    questions = {question.prompt: question for question in read_questions()}
    for row in rows("train") + rows("eval"):
        question = questions[row["prompt"][0]["content"]]
        # Whether the model ended an answer itself is not in the row; the text's rules are.
        chosen = check_answer(question, row["chosen"][0]["content"], ended=True)
        rejected = check_answer(question, row["rejected"][0]["content"], ended=True)
        assert chosen.good, row
        assert set(row["why"]["rejected_fails"]) - {"finishes"} == set(rejected.failed) - {
            "finishes"
        }


def test_pairs_prefer_different_faults() -> None:
    answers = {
        FRANCE.prompt: [
            DrawnAnswer("The capital of France is Paris.", True, 7),
            DrawnAnswer("The capital of France is", False, 5),
            DrawnAnswer("The capital of France has", False, 5),
            DrawnAnswer("It is Lyon.", True, 4),
            DrawnAnswer("", True, 0),
        ],
        SUM.prompt: [DrawnAnswer("It is 13.", True, 4)],
    }
    made = make_rows([FRANCE, SUM], answers)
    pairs = made["train"] + made["eval"]
    assert len(pairs) == 3  # none for the sum: no answer is good
    assert {row["chosen"][0]["content"] for row in pairs} == {"The capital of France is Paris."}
    faults = [tuple(row["why"]["rejected_fails"]) for row in pairs]
    assert faults[:2] == [("answers", "finishes"), ("answers",)]


def test_the_card_is_there() -> None:
    card = (Path(HERE) / "README.md").read_text()
    assert "What it is not" in card
