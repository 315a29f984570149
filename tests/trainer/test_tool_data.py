"""Reward models' data with tools, calls of them and variables of the template, by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.support.tiny import CHATML, STEP, tiny_checkpoint
from tests.support.tools import (
    ASKED,
    CALL,
    OTHER_CALL,
    RESULT,
    TEMPLATES,
    WEATHER,
    as_sent,
    published,
)
from tests.trainer.toy import write_rows
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from guerdon.trainer.common.data.preferences import load_pairs, shared_prompts
from guerdon.trainer.common.data.tokens import TokenPairs, load_tokenizer, tokenize_pairs
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.reward.inputs import read_pairs
from guerdon.trainer.reward.objectives.attributes import read_attributes
from guerdon.trainer.reward.objectives.process import read_process
from guerdon.trainer.reward.settings import AttributeSettings, ProcessSettings, RewardSettings

WARM = {"role": "assistant", "content": "Yes, 30 degrees."}
COLD = {"role": "assistant", "content": "No."}
PAIRS = [
    {"prompt": ASKED, "chosen": [CALL], "rejected": [OTHER_CALL], "tools": [WEATHER]},
    {"prompt": ASKED, "chosen": [CALL, RESULT, WARM], "rejected": [COLD], "tools": [WEATHER]},
    {"prompt": [*ASKED, CALL, RESULT], "chosen": "Yes.", "rejected": "No.", "tools": [WEATHER]},
    {"prompt": ASKED, "chosen": [WARM], "rejected": [COLD]},
]


def tokenized(base: Path, template: str, rows: list[Any], folder: Path) -> TokenPairs:
    data = load_pairs(str(write_rows(folder / "rows.jsonl", rows)), split="train")
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = template
    return tokenize_pairs(tokenizer, data, max_length=5000, too_long="error")


def ids_by_transformers(base: Path, template: str, row: dict[str, Any], side: str) -> list[int]:
    """A row's conversation with one of its answers, by `transformers` alone."""
    answer = row[side]
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    found: list[int] = AutoTokenizer.from_pretrained(base).apply_chat_template(
        row["prompt"] + turns,
        tools=row.get("tools"),
        chat_template=template,
        **row.get("chat_template_kwargs", {}),
    )["input_ids"]
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_chat_template(base: Path, tmp_path: Path, name: str) -> None:
    template = published(name)
    found = tokenized(base, template, PAIRS, tmp_path)
    for row, tokens in zip(PAIRS, found.pairs, strict=True):
        assert tokens.chosen == ids_by_transformers(base, template, row, "chosen")
        assert tokens.rejected == ids_by_transformers(base, template, row, "rejected")
    assert 0 < found.pairs[0].chosen_answer < len(found.pairs[0].chosen)


def test_rows_as_chat_apis_send_them_are_the_same(base: Path, tmp_path: Path) -> None:
    sent = [
        {
            key: [as_sent(turn) for turn in value] if isinstance(value, list) else value
            for key, value in row.items()
            if key != "tools"
        }
        | {"tools": json.dumps(row["tools"]) if "tools" in row else None}
        for row in PAIRS
    ]
    plain, other = (tokenized(base, published("qwen2_5"), rows, tmp_path) for rows in (PAIRS, sent))
    assert other == plain


def test_ids_are_those_of_trls_reward_trainer(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = published("qwen3")
    rows = [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in PAIRS[:1]]
    rows.append({**rows[0], "rejected": [WARM]})
    trainer = RewardTrainer(
        model=str(base),
        args=RewardConfig(
            str(tmp_path / "trl"), max_length=None, report_to="none", use_cpu=True, bf16=False
        ),
        train_dataset=datasets.Dataset.from_list(rows, on_mixed_types="use_json"),
        processing_class=tokenizer,
    )
    found = tokenized(base, tokenizer.chat_template, rows, tmp_path).pairs
    for pair, theirs in zip(found, trainer.train_dataset, strict=True):
        assert [pair.chosen, pair.rejected] == [theirs["chosen_ids"], theirs["rejected_ids"]]


def test_what_arrow_fills_in_is_not_part_of_a_row(base: Path, tmp_path: Path) -> None:
    """Its objects have the keys of all rows, null where a row has none."""
    calm = {"type": "function", "function": {"name": "wait", "description": "Do nothing."}}
    waits = {**CALL, "tool_calls": [{"function": {"name": "wait", "arguments": {"for": "us"}}}]}
    rows = [
        {
            "prompt": ASKED,
            "chosen": [CALL],
            "rejected": [OTHER_CALL],
            "tools": [WEATHER, calm],
            "chat_template_kwargs": {"reasoning_effort": "low"},
        },
        {
            "prompt": ASKED,
            "chosen": [waits, {"role": "tool", "content": "Waited."}, WARM],
            "rejected": [CALL],
            "tools": [calm],
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ]
    plain = load_pairs(str(write_rows(tmp_path / "rows.jsonl", rows)), split="train")
    data = datasets.Dataset.from_list(rows)
    assert data[0]["tools"][1]["function"]["parameters"] is None
    assert data[1]["chosen"][0]["tool_calls"][0]["function"]["arguments"]["city"] is None
    data.to_parquet(str(tmp_path / "rows.parquet"))
    data.save_to_disk(tmp_path / "saved")
    for source in ("rows.parquet", "saved"):
        assert load_pairs(str(tmp_path / source), split="train").rows == plain.rows


@pytest.mark.parametrize(
    ("template", "row", "reason"),
    [
        (CHATML, PAIRS[3] | {"tools": [WEATHER]}, r"tools\[0\]: has the tool 'get_weather', which"),
        (
            CHATML.replace("message['content']", "(message['content'] or '')"),
            {**PAIRS[0], "tools": None},
            r"turn 3 \(assistant\), tool_calls\[0\], has the tool call 'get_weather', which the",
        ),
        (CHATML, {**PAIRS[0], "tools": None}, r"turn 3 \(assistant\), tool_calls\[0\], has the"),
        (
            published("qwen2_5"),
            PAIRS[0] | {"chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking: is no variable that the chat template reads",
        ),
        (published("qwen2_5"), PAIRS[0] | {"tools": "no JSON"}, "tools: is not valid JSON"),
        (published("qwen2_5"), PAIRS[0] | {"tools": [{"x": 1}]}, r"tools\[0\]: must be an object"),
        (
            published("qwen2_5"),
            PAIRS[3] | {"chosen": [{**WARM, "content": [{"type": "image", "text": "x"}]}]},
            r"chosen\[0\].content\[0\]: must be a part of type text",
        ),
        (
            published("qwen2_5"),
            PAIRS[3] | {"prompt": [{"role": "developer", "content": "Obey."}, *ASKED]},
            r"turn 1 \(developer\) has the text 'Obey.', which the chat template leaves out",
        ),
    ],
)  # fmt: skip
def test_what_the_model_would_not_be_shown_is_refused(
    base: Path, tmp_path: Path, template: str, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: {reason}"):
        tokenized(base, template, ["", row], tmp_path)


def test_names_that_a_template_leaves_out_are_counted(base: Path, tmp_path: Path) -> None:
    named = [{**ASKED[0]}, {**ASKED[1], "name": "Ada"}]
    rows = [PAIRS[3], {**PAIRS[3], "prompt": named}]
    assert tokenized(base, CHATML, rows, tmp_path).names_dropped == [2]
    shows = CHATML.replace("message['role'] +", "message['role'] + ' ' + (message.name or '') +")
    assert tokenized(base, shows, rows, tmp_path).names_dropped == []
    data = str(write_rows(tmp_path / "data.jsonl", rows))
    settings = RewardSettings(base=str(base), train=data, eval=data, output=str(tmp_path / "run"))
    counts = read_pairs(settings).counts()
    assert counts["train"]["names_dropped"] == 1
    assert counts["eval"]["lines"]["names_dropped"] == [2]


def test_reasoning_beside_the_text_is_shown_or_counted(base: Path, tmp_path: Path) -> None:
    thought = {**WARM, "reasoning_content": "Thirty is warm."}
    later = [*ASKED, thought, {"role": "user", "content": "Sure?"}]
    rows = [
        {"prompt": ASKED, "chosen": [thought], "rejected": [COLD]},
        {"prompt": later, "chosen": "Yes.", "rejected": "No."},
    ]
    template = published("qwen3")
    found = tokenized(base, template, rows, tmp_path)
    assert found.reasoning_dropped == [2]
    assert found.pairs[0].chosen == ids_by_transformers(base, template, rows[0], "chosen")
    assert "Thirty is warm." in load_tokenizer(base).decode(found.pairs[0].chosen)


def test_the_same_turns_with_other_tools_are_another_prompt(tmp_path: Path) -> None:
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "get_climate"}}
    rows = [{**PAIRS[3], "tools": tools} for tools in ([WEATHER], [other], [WEATHER], None)]
    found = load_pairs(str(write_rows(tmp_path / "a.jsonl", rows)), split="train")
    assert found.duplicate_lines == [3]
    asked = load_pairs(str(write_rows(tmp_path / "b.jsonl", rows[1:2])), split="train")
    unasked = load_pairs(str(write_rows(tmp_path / "c.jsonl", [PAIRS[3]])), split="train")
    assert (shared_prompts(asked, found), shared_prompts(unasked, asked)) == (1, 0)


def test_single_answers_have_tools_too(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "llama", causal_lm=True, max_positions=2048)
    template = tmp_path / "chat.jinja"
    template.write_text(published("qwen2_5"))
    common: dict[str, Any] = {
        "base": str(base),
        "chat_template": str(template),
        "output": str(tmp_path / "run"),
        "max_length": 5000,
    }
    rated = {"messages": [*ASKED, CALL], "tools": [WEATHER], "attributes": {"good": 1.0}}
    data = str(write_rows(tmp_path / "rated.jsonl", [rated]))
    attributes = AttributeSettings(train=data, eval=data, attribute=("good=1",), **common)
    (row,) = read_attributes(attributes).inputs.train.rows
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template.read_text()
    assert row.ids == tokenizer.apply_chat_template([*ASKED, CALL], tools=[WEATHER])["input_ids"]
    steps = {"prompt": ASKED, "completions": ["30 is warm.", "No."], "labels": [True, False]}
    data = str(write_rows(tmp_path / "steps.jsonl", [steps | {"tools": [WEATHER]}]))
    process = ProcessSettings(train=data, eval=data, step_marker=STEP, **common)
    (row,) = read_process(process).inputs.train.rows
    answer = {"role": "assistant", "content": f"30 is warm.{STEP}No.{STEP}"}
    assert row.ids == tokenizer.apply_chat_template([*ASKED, answer], tools=[WEATHER])["input_ids"]
    assert [row.ids[place] for place in row.places] == tokenizer.convert_tokens_to_ids([STEP] * 2)
