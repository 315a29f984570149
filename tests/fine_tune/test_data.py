"""Data that is not as it should be: told by line, counted, or the end of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.fine_tune.support import inputs_of, settings_of
from tests.trainer.toy import toy_rows, write_rows
from transformers import AutoTokenizer

from guerdon.cli.main import main
from guerdon.data import Dropped, RowError, parse_demonstration, parse_pair
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.fine_tune.tokens import encode

Toy = tuple[Path, Path]
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": "q", "response": "a"},
        {"prompt": [USER], "completion": "a"},
        {"prompt": "q", "response": [ANSWER]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_answers_are_found(row: dict[str, Any]) -> None:
    found = parse_demonstration(row)
    assert (found.prompt, found.answer) == ([USER], "a")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q"}, "has none of messages, response, completion, chosen"),
        ({"response": "a"}, "prompt: is missing"),
        ({"messages": [ANSWER]}, "messages: has no turn before the answer"),
        ({"messages": [USER]}, "messages: does not end with the assistant's turn"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "ends with an empty answer"),
        ({"prompt": "q", "response": 3}, "response: must be a non-empty list"),
        ({"messages": [{"role": "", "content": "q"}, ANSWER]}, r"messages\[0\].role: is empty"),
        ({"messages": [{"role": "human", "content": "q"}, ANSWER]}, "whose role is 'human'"),
        ({"prompt": "q\ud800", "response": "a"}, "prompt: holds an unpaired surrogate"),
        ({"prompt": [USER, ANSWER], "response": "a"}, "prompt: ends with the assistant's turn"),
    ],
)
def test_what_is_no_demonstration(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_demonstration(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "\ud800"}, "rejected: holds an unpaired"),
        (
            {"prompt": [{**USER, "role": "human"}], "chosen": "a", "rejected": "b"},
            "role is 'human'",
        ),
        ({"prompt": [USER, ANSWER], "chosen": "a", "rejected": "b"}, "ends with the assistant's"),
    ],
)
def test_what_is_no_pair(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_pair(row)


@pytest.mark.parametrize("algorithm", ["dpo", "orpo"])
def test_pairs_come_from_transcripts_and_data_sets_too(
    algorithm: str, policy: Path, toy: Toy, tmp_path: Path
) -> None:
    start = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: 2+2?\n\nAssistant:"
    rows = [{"chosen": f"{start} 4", "rejected": f"{start} {i}"} for i in (5, 6)]
    zipped = tmp_path / "hh.jsonl.gz"
    zipped.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    saved = tmp_path / "saved"
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(saved)
    found = inputs_of(settings_of(algorithm, policy, (zipped, saved), tmp_path / "run"))
    assert [turn["role"] for turn in found.train.turns[0]] == ["user", "assistant", "user"]
    assert found.train.rows == found.eval.rows
    assert found.counts()["eval"]["prompts_in_train"] == 2


def test_bad_rows_are_named_and_counted(
    policy: Path, toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = toy_rows(6, seed=3)
    pair = {key: good[0][key] for key in ("prompt", "chosen", "rejected")}
    several = [ANSWER, USER, ANSWER]
    rows: list[Any] = [
        *good,
        {"prompt": "q", "chosen": "a"},  # line 7
        {"prompt": "q", "chosen": "a", "rejected": "a"},  # line 8
        {"prompt": "q", "chosen": [USER], "rejected": "b"},  # line 9
        "{not json",  # line 10
        pair,
        {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]},
        {"prompt": "q", "chosen": several, "rejected": "b"},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "chosen": "word " * 20_000, "rejected": "b"},
    ]
    data = write_rows(tmp_path / "data.jsonl", rows)
    with data.open("ab") as file:
        file.write(b'{"prompt": "\xff"}\n')  # line 16
    arguments = [
        "train",
        "dpo",
        "--policy",
        str(policy),
        "--train",
        str(data),
        "--eval",
        str(toy[1]),
        "--output",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    assert main(arguments) == 2
    assert "line 7: rejected: is missing" in capfd.readouterr().err
    assert main([*arguments, "--bad-rows", "skip"]) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert "train: 8 rows of" in printed
    for words in (
        "5 malformed rows were skipped: line 7, 8, 9, 10, 16",
        "line 7: rejected: is missing", "line 8: rejected: is the same as chosen",
        "line 9: chosen: does not end with the assistant's turn", "line 10: is not JSON",
        "line 16: is not valid UTF-8 (byte 13)",
        "1 rows were left out as too long: line 15",
        "1 rows were left out: an answer has several turns: line 13",
        "1 rows have an empty answer, and are left out: line 14",
        "1 rows occur more than once: line 11", "1 rows contradict another one: line 12",
        "p50", "longest",
    ):  # fmt: skip
        assert words in printed, words
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--bad-rows", "skip", "--too-long", "error"]) == 2
    assert "line 15: " in capfd.readouterr().err


def test_a_line_of_ten_megabytes(policy: Path, toy: Toy, tmp_path: Path) -> None:
    rows = [*toy_rows(2, seed=3), {"prompt": "q", "response": "x \n" * 3_300_000}]
    data = write_rows(tmp_path / "data.jsonl", rows)
    found = inputs_of(settings_of("sft", policy, (data, toy[1]), tmp_path / "run"))
    assert (len(found.train.rows), found.train.noted["too_long"]) == (2, [3])


def test_an_answer_ends_with_the_end_token_and_is_tokenised_by_itself(policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    ((prompt, answer),), _ = encode(tokenizer, [[USER]], ["a"], [1], "f", vocab_size=len(tokenizer))
    assert prompt == tokenizer.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == "a"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    ((_, unended),), _ = encode(tokenizer, [[USER]], ["a"], [1], "f", vocab_size=len(tokenizer))
    assert unended[-1] == tokenizer.eos_token_id
    tokenizer.chat_template = (
        "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(DataError, match="f, line 7: the chat template renders the prompt in"):
        encode(tokenizer, [[USER]], ["a"], [7], "f", vocab_size=len(tokenizer))


STRIPS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] | trim }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_an_answer_of_which_the_template_shows_a_part_is_refused(policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = STRIPS
    thought = "<think>I count.</think>\n42"
    prompt = [USER, {"role": "assistant", "content": "<think>Hm.</think>Yes."}, USER]
    ((_, answer),), left_out = encode(
        tokenizer, [prompt], ["42"], [7], "f", vocab_size=len(tokenizer)
    )
    assert tokenizer.decode(answer).startswith("42")
    assert left_out == [{Dropped.EARLIER_REASONING}]
    with pytest.raises(DataError, match=r"line 7: turn 2 \(assistant\) has the reasoning 'I coun"):
        encode(tokenizer, [[USER]], [thought], [7], "f", vocab_size=len(tokenizer))
    tokenizer.chat_template = STRIPS.replace("m.content.split('</think>')[-1]", "m.content[0].x")
    with pytest.raises(DataError, match=r"line 7: turn 1 \(user\) has the text 'q', which the"):
        encode(tokenizer, [[USER]], ["42"], [7], "f", vocab_size=len(tokenizer))


def test_a_token_without_an_embedding_is_named_before_training(
    policy: Path, toy: Toy, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.add_tokens(["<|late|>"])  # as a tokenizer that was changed without its model
    tokenizer.save_pretrained(policy)
    size = len(tokenizer) - 1
    rows = [{"prompt": "q", "response": "fine"}, {"prompt": "q", "response": "a <|late|> b"}]
    data = write_rows(tmp_path / "data.jsonl", rows)
    reason = (
        rf"data.jsonl, line 2: holds the token '<\|late\|>' \({size}\), and the model has "
        rf"embeddings for {size} tokens"
    )
    with pytest.raises(DataError, match=reason):
        inputs_of(settings_of("sft", policy, (data, toy[1]), tmp_path / "run"))
