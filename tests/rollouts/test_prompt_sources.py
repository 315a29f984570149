"""Prompts from tables, arrays, Parquet, saved data sets and the hub, under any column's name."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.rollouts.support import tokenizer, write_rows

from guerdon.trainer.common.data import rows as row_files
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.services import prompts as prompt_files
from guerdon.trainer.common.services.prompts import PromptOrder, Prompts, load_prompts

ROWS = [
    {"question": "What is 1 + 1?", "solution": "2", "level": "easy", "hint": None},
    {"question": 'Say "no,\nthanks".', "solution": "no, thanks", "level": "hard", "hint": "; \t"},
    {"question": "Größe?", "solution": "007", "level": "hard", "hint": "1.50"},
]
KEYS = {"prompt_key": "question", "answer_key": "solution"}


def load(source: object, **how: Any) -> Prompts:
    how = {"max_prompt_tokens": 256} | KEYS | how
    return load_prompts(str(source), tokenizer(), **how)


def write_table(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)
    return path


def write_all(folder: Path) -> dict[str, Path]:
    """The same rows in every form."""
    data = datasets.Dataset.from_list(ROWS)
    files = {
        "lines": Path(write_rows(folder / "p.jsonl", ROWS)),
        "csv": write_table(folder / "p.csv"),
        "bom": write_table(folder / "bom.csv", encoding="utf-8-sig"),
        "semicolons": write_table(folder / "semicolons.csv", ";"),
        "tsv": write_table(folder / "p.tsv", "\t"),
        "no name": write_table(folder / "table"),
        "gzip": folder / "p.csv.gz",
        "array": folder / "p.json",
        "parquet": folder / "p.parquet",
        "saved": folder / "saved",
        "splits": folder / "splits",
        "folder": folder / "parquets",
    }
    files["gzip"].write_bytes(gzip.compress(files["csv"].read_bytes()))
    files["array"].write_text(json.dumps(ROWS, indent=1))
    data.to_parquet(files["parquet"])
    data.save_to_disk(files["saved"])
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(files["splits"])
    (files["folder"] / "data").mkdir(parents=True)
    data.to_parquet(files["folder"] / "data" / "train-00000-of-00001.parquet")
    return files


def test_every_form_holds_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    files = write_all(tmp_path)
    found = {form: load(path) for form, path in files.items()}
    wanted = found["lines"]
    assert [row.text for row in wanted.rows] == [row["question"] for row in ROWS]
    assert [row.answer for row in wanted.rows] == ["2", "no, thanks", "007"]
    for row, whole in zip(wanted.rows, ROWS, strict=True):
        assert row.extra == {key: value for key, value in whole.items() if key != "question"}
    for form, prompts in found.items():
        assert prompts.rows == wanted.rows, form
        assert [ids.tolist() for ids in prompts.prompt_ids] == [
            ids.tolist() for ids in wanted.prompt_ids
        ]
        assert len(prompts.sha256) == 64
    assert found["csv"].lines == (2, 3, 5)  # the second is of two lines
    assert load(files["splits"], split="test").rows == wanted.rows[:1]
    for form in ("csv", "parquet", "saved"):
        assert load(files[form], limit=2).rows == wanted.rows[:2]


def test_a_run_goes_on_only_on_the_same_rows(tmp_path: Path) -> None:
    """A data set has no file to hash: its rows are."""
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    data.save_to_disk(tmp_path / "same")
    data.select([1, 0, 2]).save_to_disk(tmp_path / "other")
    order = PromptOrder(load(tmp_path / "one"), seed=0)
    taken = [order.next().row.index for _ in range(2)]
    state = json.loads(json.dumps(order.state_dict()))
    again = PromptOrder(load(tmp_path / "same"), seed=0)
    again.load_state_dict(state)
    assert sorted(again.next().row.index for _ in range(3)) == [0, 1, 2]
    assert len(set(taken)) == 2
    with pytest.raises(DataError, match="its sha256 is"):
        PromptOrder(load(tmp_path / "other"), seed=0).load_state_dict(state)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"prompt_key": "questoin"}, r"questoin: is missing; did you mean 'question'\?"),
        ({"prompt_key": "prompt"}, r"prompt: is missing; the columns are question, solution, .*"),
        ({"answer_key": "solutions"}, r"solutions: is missing; did you mean 'solution'\?"),
    ],
)
def test_a_missing_column_names_the_nearest(
    tmp_path: Path, keys: dict[str, str], reason: str
) -> None:
    option = f"--{next(iter(keys)).replace('_', '-')}"
    with pytest.raises(DataError, match=rf"p\.csv, line 2: {reason}.*{option}"):
        load(write_table(tmp_path / "p.csv"), **keys)


def test_a_prompt_without_a_value_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.csv, line 2: hint: is missing$"):
        load(write_table(tmp_path / "p.csv"), prompt_key="hint")


def test_errors_of_a_prompt_name_its_column(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [{"question": [{"role": "user"}], "solution": 1}])
    with pytest.raises(DataError, match=r"line 1: question\[0\]\.content: must be text"):
        load(path)
    path = write_rows(tmp_path / "q.jsonl", [{"question": "Why? " * 99, "solution": 1}])
    with pytest.raises(DataError, match=r"line 1: question: \d+ tokens, over the limit of 64"):
        load(path, max_prompt_tokens=64)
    path = write_rows(tmp_path / "r.jsonl", [{"question": "<|im_end|>", "solution": 1}])
    with pytest.raises(DataError, match=r"line 1: question: spells the control token"):
        load(path, control_tokens="refuse")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("question,solution\na,b\nc\n", r"p\.csv, line 3: has 1 cells, and the header has 2"),
        ("question,solution\na,b,c\n", r"p\.csv, line 2: has 3 cells, and the header has 2"),
        ("question,question\na,b\n", r"p\.csv: line 1 must name every column once"),
        ("question,\na,b\n", r"p\.csv: line 1 must name every column once"),
        ("", r"p\.csv: line 1 must name every column once"),
        ("question,solution\n", "holds no prompt"),
        ('question,solution\n"a,b\n', r"can't read .*p\.csv: unexpected end of data"),
        ("question,solution\n\n,b\n", r"p\.csv, line 3: question: is missing"),
        ("question,solution\n\udcff,b\n", r"can't read .*p\.csv: .*can't decode byte"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    with pytest.raises(DataError, match=reason):
        load(path)


@pytest.mark.parametrize("name", ["p.csv.gz", "p.json.gz"])
def test_a_damaged_gzip_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    plain = write_table(tmp_path / "p.csv").read_bytes() if "csv" in name else json.dumps(ROWS)
    data = gzip.compress(plain if isinstance(plain, bytes) else plain.encode())
    path = tmp_path / name
    for damaged in (data[:-9], data[:10] + b"\xff" * 20, data[:-8] + b"\0" * 8):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"p\.\w+\.gz"):
            load(path)


def test_a_hub_that_can_not_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"^'nobody/none:main' is no file, and the hub can't be asked for it: [^\n]+$"
    with pytest.raises(DataError, match=message):
        load("nobody/none:main")


def test_a_hub_name_may_have_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(name: str, configuration: str | None, *, split: str) -> Any:
        asked.append((name, configuration, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fetched)
    assert len(load("openai/gsm8k:main", split="test")) == 3
    load("openai/gsm8k")
    assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", None, "train")]


def test_what_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_all(tmp_path)
    monkeypatch.setattr(prompt_files, "MAX_KEPT_CHARACTERS", 300)
    for form in ("lines", "csv", "parquet", "saved"):
        with pytest.raises(DataError, match="take fewer prompts or columns"):
            load(files[form])
        assert len(load(files[form], limit=1)) == 1
    monkeypatch.setattr(row_files, "MAX_ARRAY_BYTES", 100)
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(b"[" + b" " * 5000 + b"]"))
    assert packed.stat().st_size < 100
    for path in (files["array"], packed):
        with pytest.raises(DataError, match=r"a JSON array of over .* which is read whole"):
            load(path)
