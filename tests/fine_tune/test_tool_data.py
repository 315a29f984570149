"""Answers that call tools, and rows with tools, by TRL's own tokenisation of the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.fine_tune.support import inputs_of, settings_of
from tests.support.tiny import TURN_END, tiny_checkpoint
from tests.support.tools import ASKED, CALL, OTHER_CALL, RESULT, WEATHER, as_sent, published
from tests.trainer.toy import write_rows
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.trl.completions import IGNORED
from guerdon.trainer.fine_tune.samples import write_samples

WARM = {"role": "assistant", "content": "Yes, 30 degrees."}
THOUGHT = {**CALL, "reasoning_content": "I ask the tool."}
QUIET = {"enable_thinking": False}
ANSWERS: list[dict[str, Any]] = [
    {"prompt": ASKED, "completion": [CALL], "tools": [WEATHER], "chat_template_kwargs": QUIET},
    {"prompt": ASKED, "completion": [THOUGHT], "tools": [WEATHER], "chat_template_kwargs": {}},
    {"prompt": [*ASKED, CALL, RESULT], "completion": [WARM], "tools": [WEATHER]},
]
PAIRS: list[dict[str, Any]] = [
    {"prompt": ASKED, "chosen": [CALL], "rejected": [OTHER_CALL], "tools": [WEATHER]},
    {"prompt": ASKED, "chosen": [CALL], "rejected": [WARM], "tools": [WEATHER]},
]
SEVERAL = {"prompt": ASKED, "chosen": [CALL, RESULT, WARM], "rejected": [WARM], "tools": [WEATHER]}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy whose template renders tools, and whose turns end with its end token."""
    folder = tmp_path_factory.mktemp("agent") / "m"
    template = published("qwen3")
    tiny_checkpoint(folder, "llama", causal_lm=True, max_positions=2048, chat_template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = TURN_END
    tokenizer.save_pretrained(folder)
    return folder


def trainer_of(kind: Any, config: Any, policy: Path, rows: list[Any], folder: Path) -> Any:
    """A trainer of TRL's, which has tokenised the rows."""
    return kind(
        model=str(policy),
        args=config(str(folder), max_length=None, report_to="none", use_cpu=True, bf16=False),
        train_dataset=datasets.Dataset.from_list(rows, on_mixed_types="use_json"),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )


def test_answers_are_trls_up_to_their_end_token(agent: Path, tmp_path: Path) -> None:
    rows = [{"chat_template_kwargs": {}, **row} for row in ANSWERS]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = inputs_of(
        settings_of("sft", agent, (data, data), tmp_path / "run", max_length=2000)
    ).train.rows
    trainer = trainer_of(SFTTrainer, SFTConfig, agent, rows, tmp_path / "trl")
    tokenizer = AutoTokenizer.from_pretrained(agent)
    for (prompt, answer), theirs in zip(found, trainer.train_dataset, strict=True):
        ids, cut = theirs["input_ids"], len(prompt) + len(answer)
        assert [*prompt, *answer] == ids[:cut]
        assert tokenizer.decode(ids[cut - 1 :]) == f"{TURN_END}\n"
        assert [label == IGNORED for label in theirs["labels"]].index(False) == len(prompt)


def test_pairs_are_trls_up_to_their_end_token(agent: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [*PAIRS, SEVERAL])
    split = inputs_of(
        settings_of("dpo", agent, (data, data), tmp_path / "run", max_length=2000)
    ).train
    assert split.noted["several_turns"] == [3]
    trainer = trainer_of(DPOTrainer, DPOConfig, agent, PAIRS, tmp_path / "trl")
    for pair, theirs in zip(split.rows, trainer.train_dataset, strict=True):
        assert pair.prompt == theirs["prompt_ids"]
        for side in ("chosen", "rejected"):
            ours, whole = getattr(pair, side), theirs[f"{side}_ids"]
            assert ours == whole[: len(ours)]
            assert len(whole) == len(ours) + 1  # the line's end after the turn's


@pytest.mark.parametrize("algorithm", ["sft", "orpo"])
def test_rows_as_chat_apis_send_them_are_the_same(
    algorithm: str, agent: Path, tmp_path: Path
) -> None:
    found = []
    for name in ("plain", "sent"):
        rows = [
            {
                key: [as_sent(turn) for turn in value]
                if name == "sent" and key in ("prompt", "completion", "chosen", "rejected")
                else value
                for key, value in row.items()
            }
            for row in (ANSWERS if algorithm == "sft" else PAIRS)
        ]
        if name == "sent":
            rows = [{**row, "tools": json.dumps(row["tools"])} for row in rows]
        data = write_rows(tmp_path / f"{name}.jsonl", rows)
        settings = settings_of(algorithm, agent, (data, data), tmp_path / "run", max_length=2000)
        found.append(inputs_of(settings).train.rows)
    assert found[0] == found[1]


def test_an_empty_turn_is_left_out_and_one_that_calls_is_not(agent: Path, tmp_path: Path) -> None:
    rows = [PAIRS[0], {**PAIRS[0], "rejected": ""}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    settings = settings_of("dpo", agent, (data, data), tmp_path / "run", max_length=2000)
    assert inputs_of(settings).train.noted["empty_answers"] == [2]


def test_what_would_not_be_learned_is_refused_and_names_are_noted(
    agent: Path, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    more: dict[str, Any] = {"chat_template": str(template), "max_length": 2000}

    def inputs(rows: list[Any]) -> Any:
        data = write_rows(tmp_path / "rows.jsonl", rows)
        return inputs_of(settings_of("sft", agent, (data, data), tmp_path / "run", **more))

    template.write_text(published("qwen2_5"))
    with pytest.raises(
        DataError, match=r"line 1: chat_template_kwargs\.enable_thinking: is no var"
    ):
        inputs(ANSWERS)
    with pytest.raises(DataError, match=r"line 1: turn 3 \(assistant\) has the reasoning 'I ask"):
        inputs(ANSWERS[1:])
    named = [*ASKED[:1], {**ASKED[1], "name": "Ada"}]
    found = inputs([ANSWERS[2], {"prompt": named, "response": "Yes."}])
    assert found.counts()["train"]["names_dropped"] == 2
    assert found.train.noted["names_dropped"] == [1, 2]  # the first one's is the tool's
    template.write_text(published("llama3"))
    with pytest.raises(DataError, match=r"line 1: tools\[0\]: has the tool 'get_weather', which"):
        inputs(ANSWERS[2:])


def test_samples_say_which_tools_there_were(agent: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", ANSWERS)
    inputs = inputs_of(settings_of("sft", agent, (data, data), tmp_path / "run", max_length=2000))
    said: Any = {"response": "Yes.", "tokens": 2, "finished": True}
    write_samples(tmp_path / "samples.jsonl", inputs, [[said] * 3, [said] * 3], 1)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["tools"] for row in rows] == [[WEATHER]] * 6
    assert rows[0]["chat_template_kwargs"] == QUIET
    assert "chat_template_kwargs" not in rows[2]
