"""From files to token ids: nothing is dropped in silence, and ids are the server's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import tiny_checkpoint, tiny_tokenizer
from tests.trainer.toy import toy_rows, write_rows
from transformers import AutoTokenizer

from guerdon.trainer.common.data.preferences import Preferences, load_pairs, shared_prompts
from guerdon.trainer.common.data.tokens import (
    NEW_PAD_TOKEN,
    choose_pad_token,
    load_tokenizer,
    tokenize_pairs,
)
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.reward.inputs import read_pairs
from guerdon.trainer.reward.settings import RewardSettings

HH = {
    "chosen": "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: 2+2?\n\nAssistant: 4",
    "rejected": "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: 2+2?\n\nAssistant: 5",
}


def load(path: Path, **more: Any) -> Preferences:
    return load_pairs(str(path), split="train", **more)


def test_transcripts_and_messages_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = [HH, *toy_rows(2, seed=0)]
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    found = load(path)
    assert found.rows[0].prompt == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "2+2?"},
    ]
    assert found.rows[0].chosen == [{"role": "assistant", "content": "4"}]
    assert len(found.rows) == 3
    assert load(path, limit=2).lines == [1, 2]


def test_bad_rows_stop_with_the_line(tmp_path: Path) -> None:
    good = toy_rows(2, seed=0)
    path = write_rows(tmp_path / "a.jsonl", [good[0], "", "{broken", good[1], {"chosen": []}])
    with pytest.raises(DataError, match="line 3: is not JSON"):
        load(path)
    found = load(path, bad_rows="skip")
    assert found.lines == [1, 4]
    assert [error.line for error in found.bad] == [3, 5]


def test_no_pairs_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no preference pair"):
        load(write_rows(tmp_path / "a.jsonl", []))
    with pytest.raises(DataError, match=r"there is no file .*: helpful-train, helpful-eval, "):
        load(tmp_path / "none.jsonl")


def test_repeats_are_counted_and_kept(tmp_path: Path) -> None:
    one, two = toy_rows(2, seed=0)
    turned = {**one, "chosen": one["rejected"], "rejected": one["chosen"]}
    found = load(write_rows(tmp_path / "a.jsonl", [one, one, two, turned]))
    assert [*map(len, (found.duplicate_lines, found.contradiction_lines, found.rows))] == [1, 1, 4]
    other = load(write_rows(tmp_path / "b.jsonl", [two, *toy_rows(3, seed=9)]))
    assert shared_prompts(found, other) == 1


def test_a_data_set_that_was_saved(tmp_path: Path) -> None:
    import datasets

    rows = toy_rows(3, seed=0)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "d")
    found = load(tmp_path / "d")
    assert [pair.prompt for pair in found.rows] == [row["prompt"] for row in rows]
    assert found.sha256 == ""
    with pytest.raises(DataError, match="split 'nope'"):
        load_pairs(str(tmp_path / "d"), split="nope")


def test_parquet_and_json_arrays_are_read_as_json_lines_are(tmp_path: Path) -> None:
    import datasets

    rows = [*toy_rows(600, seed=0), *toy_rows(2, seed=1)]
    expected = load(write_rows(tmp_path / "a.jsonl", rows)).rows
    array, zipped = tmp_path / "a.json", tmp_path / "a.json.gz"
    array.write_text(json.dumps(rows, indent=1))
    zipped.write_bytes(gzip.compress(array.read_bytes()))
    (tmp_path / "hub" / "data").mkdir(parents=True)  # as hubs lay data sets out
    for name in ("a.parquet", "hub/data/train-00000-of-00001.parquet"):
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / name))
    for source in (array, zipped, tmp_path / "a.parquet", tmp_path / "hub"):
        found = load(source)
        assert found.rows == expected
        assert found.lines == list(range(1, 603))
        assert bool(found.sha256) is source.is_file()


def test_rows_of_other_files_are_named_as_what_they_are(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("prompt,chosen,rejected\nq,a,b\n")
    with pytest.raises(DataError, match=r"a\.csv: the file is CSV, not JSON Lines"):
        load(table)
    array = tmp_path / "a.json"
    array.write_text(json.dumps([*toy_rows(1, seed=0), 3]))
    with pytest.raises(DataError, match=r"a\.json, line 2: must be a JSON object"):
        load(array)
    cut = tmp_path / "a.parquet"
    cut.write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(DataError, match=r"a\.parquet is damaged or no Parquet file"):
        load(cut)


def test_ids_are_those_of_the_chat_template(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    data = load(write_rows(tmp_path / "a.jsonl", [HH, *toy_rows(5, seed=0)]))
    found = tokenize_pairs(tokenizer, data, max_length=500, too_long="drop")
    plain = AutoTokenizer.from_pretrained(base)
    for pair, tokens in zip(data.rows, found.pairs, strict=True):
        for turns, ids in ((pair.chosen, tokens.chosen), (pair.rejected, tokens.rejected)):
            whole = plain.apply_chat_template(pair.prompt + turns, return_dict=True)
            assert ids == whole["input_ids"]
        assert tokens.chosen[: tokens.shared] == tokens.rejected[: tokens.shared]
        assert tokens.chosen[tokens.shared] != tokens.rejected[tokens.shared]
        answer = plain(pair.chosen[-1]["content"], add_special_tokens=False)["input_ids"]
        assert tokens.chosen_answer == len(answer)


def test_too_long_pairs_are_counted_or_refused(base: Path, tmp_path: Path) -> None:
    long = toy_rows(1, seed=3)[0]
    long["rejected"] = [{"role": "assistant", "content": "rain " * 100}]
    data = load(write_rows(tmp_path / "a.jsonl", [*toy_rows(3, seed=0), long]))
    tokenizer = load_tokenizer(base)
    found = tokenize_pairs(tokenizer, data, max_length=120, too_long="drop")
    assert (len(found.pairs), found.too_long) == (3, 1)
    assert found.longest > 120
    with pytest.raises(DataError, match=r"line 4: \d+ tokens, over the limit of 120"):
        tokenize_pairs(tokenizer, data, max_length=120, too_long="error")
    with pytest.raises(DataError, match="no row is left"):
        tokenize_pairs(tokenizer, data, max_length=3, too_long="drop")


def test_answers_that_render_the_same_are_counted(base: Path, tmp_path: Path) -> None:
    rows = toy_rows(2, seed=0)
    rows[1]["chosen"] = [{"role": "assistant", "content": "4"}]
    rows[1]["rejected"] = [{"role": "assistant", "content": "4 "}]
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"
    data = load(write_rows(tmp_path / "a.jsonl", rows))
    found = tokenize_pairs(tokenizer, data, max_length=120, too_long="drop")
    assert (len(found.pairs), found.same) == (1, 1)


def test_a_template_that_refuses_names_the_line(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    data = load(write_rows(tmp_path / "a.jsonl", toy_rows(1, seed=0)))
    with pytest.raises(DataError, match="line 1: the chat template refuses it: no system role"):
        tokenize_pairs(tokenizer, data, max_length=120, too_long="drop")


PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for p in m['content'] if p['type'] == 'text' %}"
    "{{ p['text'] }}{% endfor %}\n{% endfor %}"
)
STRIPS = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}\n{% endfor %}"


def test_a_template_that_leaves_text_out_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    data = load(write_rows(tmp_path / "a.jsonl", [HH]))
    tokenizer.chat_template = PARTS
    with pytest.raises(DataError, match=r"line 1: turn 1 \(user\) has the text 'hello', which"):
        tokenize_pairs(tokenizer, data, max_length=120, too_long="drop")


def test_reasoning_that_the_template_strips_is_counted(base: Path, tmp_path: Path) -> None:
    """As in serving: a reward model of such a template judges answers without it."""
    tokenizer = load_tokenizer(base)
    thought = {**HH, "chosen": HH["chosen"].replace("4", "<think>two and two</think>4")}
    data = load(write_rows(tmp_path / "a.jsonl", [HH, thought]))
    tokenizer.chat_template = STRIPS
    found = tokenize_pairs(tokenizer, data, max_length=120, too_long="drop")
    assert found.reasoning_dropped == [2]
    assert found.pairs[0].chosen == found.pairs[1].chosen


def test_a_model_without_a_template_is_refused(encoder_base: Path, chatml: Path) -> None:
    with pytest.raises(SettingsError, match="no chat template"):
        load_tokenizer(encoder_base)
    assert load_tokenizer(encoder_base, str(chatml)).chat_template == chatml.read_text()


def test_the_pad_token_occurs_in_no_sequence() -> None:
    tokenizer = tiny_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "</s>", "<unk>")}
    assert not choose_pad_token(tokenizer, [[50, 51, ids["</s>"]]], 512)
    assert tokenizer.pad_token == "<pad>"

    tokenizer.pad_token = "</s>"  # pad = eos, as in many models
    assert not choose_pad_token(tokenizer, [[50, 51, ids["</s>"]]], 512)
    assert tokenizer.pad_token == "<unk>"

    tokenizer.pad_token = "<unk>"
    assert not choose_pad_token(tokenizer, [[ids["<unk>"], 50]], 512)
    assert tokenizer.pad_token not in ("<unk>", "</s>")


def test_a_pad_token_has_an_embedding() -> None:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<late>"})
    assert not choose_pad_token(tokenizer, [[50, 51]], size)
    assert tokenizer.pad_token_id < size


def test_a_token_without_an_embedding_is_named(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "llama")
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<|late|>"])
    tokenizer.save_pretrained(base)
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad <|late|>"}]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RewardSettings(
        base=str(base), train=str(data), eval=str(data), output=str(tmp_path / "run")
    )
    with pytest.raises(DataError, match=r"pairs.jsonl, line 1: holds the token '<\|late\|>'"):
        read_pairs(settings)


def test_a_pad_token_is_added_when_all_are_used() -> None:
    tokenizer = tiny_tokenizer()
    everything = [list(range(len(tokenizer)))]
    assert choose_pad_token(tokenizer, everything, len(tokenizer))
    assert tokenizer.pad_token == NEW_PAD_TOKEN
    assert tokenizer.pad_token_id == len(everything[0])
