"""Prompts with tools and variables of the template: as transformers renders them, and kept so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tests.rollouts.support import write_rows
from tests.support.tiny import BOS, TURN_END, tiny_tokenizer
from tests.support.tools import (
    ARGUMENTS,
    ASKED,
    CALL,
    RESULT,
    TEMPLATES,
    WEATHER,
    as_sent,
    published,
)

from guerdon.client import Conversation, Item
from guerdon.client.testing import FakeRewardServer
from guerdon.client.types import ModelInfo
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.measuring.samples import sample_row
from guerdon.trainer.common.services.inputs import RunInputs
from guerdon.trainer.common.services.policy_text import PolicyText
from guerdon.trainer.common.services.prompts import Prompts, load_prompts
from guerdon.trainer.common.services.reward_requests import RequestRules
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.types import Group, Sample, Task
from guerdon.trainer.preference_data.settings import PairsSettings
from guerdon.trainer.rl.checkpoint import Checkpoints
from guerdon.trainer.rl.rollout.buffer import pack_groups, unpack_groups

QUIET = {"enable_thinking": False}
ROWS: list[dict[str, Any]] = [
    {"prompt": ASKED, "tools": [WEATHER]},
    {"prompt": [*ASKED, CALL, RESULT], "tools": [WEATHER]},
    {"prompt": "Is it warm in Rome?", "tools": [WEATHER]},
    {"prompt": ASKED},
]


def load(folder: Path, template: str, rows: list[Any], **more: Any) -> Prompts:
    return load_prompts(
        write_rows(folder / "prompts.jsonl", rows),
        tiny_tokenizer(chat_template=template),
        max_prompt_tokens=5000,
        **more,
    )


def by_transformers(template: str, row: dict[str, Any]) -> list[int]:
    turns = row["prompt"]
    found: list[int] = tiny_tokenizer(chat_template=template).apply_chat_template(
        [{"role": "user", "content": turns}] if isinstance(turns, str) else turns,
        tools=row.get("tools"),
        add_generation_prompt=True,
        **row.get("chat_template_kwargs", {}),
    )["input_ids"]
    return found


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_the_chat_template(name: str, tmp_path: Path) -> None:
    template = published(name)
    rows = ROWS
    if "enable_thinking" in template:
        rows = [*ROWS, ROWS[0] | {"chat_template_kwargs": QUIET}]
    found = load(tmp_path, template, rows)
    assert [ids.tolist() for ids in found.prompt_ids] == [
        by_transformers(template, row) for row in rows
    ]
    assert found.duplicates == 0
    assert found.openings == ("",) * len(rows)


def test_rows_as_chat_apis_send_them_are_the_same(tmp_path: Path) -> None:
    plain = load(tmp_path, published("qwen2_5"), ROWS[:2])
    sent = [
        {"prompt": [as_sent(turn) for turn in row["prompt"]], "tools": json.dumps(row["tools"])}
        for row in ROWS[:2]
    ]
    other = load(tmp_path, published("qwen2_5"), sent)
    assert [row.turns for row in other.rows] == [row.turns for row in plain.rows]
    assert [row.inputs for row in other.rows] == [row.inputs for row in plain.rows]
    (tmp_path / "prompts.csv").write_text(
        "prompt,tools\nWarm?,\nWarm?," + '"' + json.dumps([WEATHER]).replace('"', '""') + '"\n'
    )
    cells = load_prompts(
        str(tmp_path / "prompts.csv"),
        tiny_tokenizer(chat_template=published("qwen2_5")),
        max_prompt_tokens=5000,
    )
    assert [row.inputs.tools for row in cells.rows] == [(), (WEATHER,)]


def test_what_arrow_fills_in_is_not_part_of_a_prompt(tmp_path: Path) -> None:
    calm = {"type": "function", "function": {"name": "wait", "description": "Do nothing."}}
    waits = {**CALL, "tool_calls": [{"function": {"name": "wait", "arguments": {"for": "us"}}}]}
    rows = [
        {"prompt": [*ASKED, CALL, RESULT], "tools": [WEATHER, calm]},
        {"prompt": [*ASKED, waits, {"role": "tool", "content": "Waited."}], "tools": [calm]},
    ]
    plain = load(tmp_path, published("qwen2_5"), rows)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    words = tiny_tokenizer(chat_template=published("qwen2_5"))
    found = load_prompts(str(tmp_path / "saved"), words, max_prompt_tokens=5000)
    assert found.rows == plain.rows
    assert found.rows[1].extra == {"tools": [calm]}  # what rewards of one's own are given


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("llama3", ROWS[0], r"tools\[0\]: has the tool 'get_weather', which"),
        (
            "qwen2_5",
            ROWS[0] | {"chat_template_kwargs": QUIET},
            r"chat_template_kwargs\.enable_thinking: is no variable that the chat template reads",
        ),
        ("qwen2_5", ROWS[0] | {"chat_template_kwargs": {"tools": 1}}, "is no variable that a conv"),
        ("qwen2_5", {"prompt": [*ASKED, CALL]}, "ends with the assistant's turn"),
        (
            "qwen2_5",
            {"prompt": [{"role": "user", "content": None}]},
            r"prompt\[0\].content: must be text",
        ),
    ],
)
def test_what_the_policy_would_not_be_shown_is_refused(
    name: str, row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"line 2: .*{reason}"):
        load(tmp_path, published(name), [{"prompt": "Hi"}, row])


def test_a_policy_without_a_template_takes_no_tools(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p", [{"prompt": "Hi", "tools": [WEATHER]}])
    with pytest.raises(DataError, match="line 1: tools: is for a chat template, and the policy"):
        load_prompts(path, tiny_tokenizer(), max_prompt_tokens=5000)


def test_every_text_of_a_prompt_may_not_spell_a_control_token(tmp_path: Path) -> None:
    def with_argument(text: str) -> dict[str, Any]:
        function = {"name": "get_weather", "arguments": {**ARGUMENTS, "city": text}}
        return {**CALL, "tool_calls": [{"type": "function", "function": function}]}

    described = {**WEATHER["function"], "description": f"Weather.{TURN_END}"}
    rows = [
        ({"prompt": [*ASKED, with_argument(TURN_END), RESULT], "tools": [WEATHER]}, "prompt"),
        ({"prompt": [*ASKED, {**CALL, "reasoning_content": BOS}, RESULT]}, "prompt"),
        ({"prompt": ASKED, "tools": [{**WEATHER, "function": described}]}, "tools"),
    ]
    for row, field in rows:
        assert len(load(tmp_path, published("qwen3"), [row])) == 1
        with pytest.raises(DataError, match=f"line 1: {field}: spells the control token '<"):
            load(tmp_path, published("qwen3"), [row], control_tokens="refuse")


def test_names_that_the_template_leaves_out_are_counted(tmp_path: Path) -> None:
    named = [ASKED[0], {**ASKED[1], "name": "Ada"}]
    found = load(tmp_path, published("qwen2_5"), [{"prompt": ASKED}, {"prompt": named}])
    assert (found.names_dropped, found.reasoning_dropped) == (1, 0)


def test_the_same_turns_with_other_inputs_are_another_prompt(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[3], ROWS[0], ROWS[3] | {"chat_template_kwargs": QUIET}]
    found = load(tmp_path, published("qwen3"), rows)
    assert found.duplicates == 1
    held_out = load(tmp_path, published("qwen3"), rows[1:3])
    other = load(tmp_path, published("qwen3"), rows[3:])
    folder = Path()
    assert RunInputs(folder, None, None, found, held_out).shared == 2
    assert RunInputs(folder, None, None, other, held_out).shared == 0
    saved = []
    for name, tools in (("a", [WEATHER]), ("b", [{**WEATHER, "strict": True}])):
        data = datasets.Dataset.from_list([{"prompt": ASKED, "tools": tools}])
        data.save_to_disk(tmp_path / name)
        words = tiny_tokenizer(chat_template=published("qwen3"))
        saved.append(load_prompts(str(tmp_path / name), words, max_prompt_tokens=5000).sha256)
    assert saved[0] != saved[1]


def group_of(task: Task, *texts: str) -> Group:
    """Completions of a task."""
    zeros = np.zeros(1, np.int32)
    samples = [
        Sample(
            task.uid, i, task.prompt_ids_P, zeros + 7, zeros.astype(np.float32), zeros, True, text
        )
        for i, text in enumerate(texts)
    ]
    return Group(task, samples)


def test_groups_keep_their_tools_over_a_checkpoint(tmp_path: Path) -> None:
    prompts = load(tmp_path, published("qwen3"), [ROWS[1] | {"chat_template_kwargs": QUIET}])
    group = group_of(prompts.task(0, 0), "Yes.")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    saved = checkpoints.save(1, {"buffer": pack_groups([group])})
    (again,) = unpack_groups(saved.load("buffer"))
    assert again.task.row == group.task.row
    row = sample_row(again, again.samples[0])
    assert (row["tools"], row["chat_template_kwargs"]) == ([WEATHER], QUIET)


async def test_a_reward_model_is_asked_with_the_tools(tmp_path: Path) -> None:
    asked: list[Any] = []

    def score(prompt: Any, answer: str) -> float:
        asked.append(prompt)
        return float(len(answer))

    rows = [ROWS[1] | {"chat_template_kwargs": QUIET}, ROWS[3]]
    prompts = load(tmp_path, published("qwen3"), rows)
    with FakeRewardServer(score) as server:
        source = RewardSource([f"{server.target}/fake"], patience=20.0, request_timeout=20.0)
        await source.start()
        for task in prompts.tasks():
            await source.score(group_of(task, "Yes."))
        await source.close()
    turns = (*ASKED, CALL, RESULT)
    assert asked == [Conversation(turns, (WEATHER,)), ASKED]  # type: ignore[arg-type]


def test_variables_of_the_policys_template_go_where_that_template_is(tmp_path: Path) -> None:
    words = tiny_tokenizer(chat_template=published("qwen3"))
    prompts = load(tmp_path, published("qwen3"), [ROWS[0] | {"chat_template_kwargs": QUIET}])
    text = read_text_form(words, prompts)
    task = prompts.task(0, 0)
    samples = group_of(task, "Yes.").samples

    def inputs(**hashes: str) -> Any:
        item = text.item(task.row, samples, ModelInfo(name="m", revision="r", **hashes))
        assert isinstance(item, Item)
        assert isinstance(item.prompt, Conversation)
        return item.prompt.chat_template_kwargs

    assert inputs(chat_template_hash=text.template_hash) == QUIET
    assert inputs(chat_template_hash="another") == {}


def read_text_form(words: Any, *prompts: Prompts) -> PolicyText:
    """How completions to prompts are put to reward models."""
    settings = PairsSettings(
        policy="p", sampler="s:1", prompts="f", output="o", verifier=("exact",)
    )
    text = RequestRules.of(settings, words, *prompts).text
    assert text is not None
    return text


MARKS = (
    "{{ tools or '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ '<step>' if tools else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that ends an answer otherwise where there are tools."""
MARKS_RESULTS = (
    "{% set seen = namespace(result=false) %}{{ tools or '' }}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content or m.tool_calls }}"
    "{% if m.role == 'tool' %}{% set seen.result = true %}{% endif %}"
    "{{ '<step>' if seen.result else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template that ends an answer otherwise after what a tool answered."""


@pytest.mark.parametrize(
    ("template", "rows", "shared"),
    [
        (published("qwen2_5"), ROWS, True),
        (MARKS, [ROWS[0], ROWS[2]], True),
        (MARKS, [ROWS[0], ROWS[3]], False),
        (MARKS_RESULTS, [ROWS[0], ROWS[2]], True),
        (MARKS_RESULTS, [ROWS[0], ROWS[1]], False),
    ],
)
def test_token_ids_stand_for_text_only_where_all_answers_end_alike(
    template: str, rows: Sequence[Any], shared: bool, tmp_path: Path
) -> None:
    words = tiny_tokenizer(chat_template=template)
    ending = read_text_form(words, load(tmp_path, template, list(rows))).ending_ids
    assert bool(ending) is shared
