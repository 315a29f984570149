"""Conversations with tools, through every door of a real server: all mean the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support import tools as talk
from tests.support.server import RunningServer, running_server
from tests.support.tiny import tiny_checkpoint, tiny_tokenizer

from guerdon.cli.main import main
from guerdon.client import Conversation, InvalidArgument, RewardClient, TokenIds

TEMPLATES = ("qwen3", "llama3_1", "deepseekv3_training")
QUIET = {"enable_thinking": False}
Served = tuple[RunningServer, httpx.Client]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tools")
    models = {
        name: tiny_checkpoint(
            folder / name, "llama", chat_template=talk.published(name), max_positions=2048
        )
        for name in TEMPLATES
    }
    with (
        running_server(models, dtype="float32") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        yield server, http


def expected(server: RunningServer, model: str, turns: list[Any], **given: Any) -> float:
    """The score of the tokens that `apply_chat_template` makes, sent as token ids."""
    tokenizer = tiny_tokenizer(chat_template=talk.published(model))
    ids = tokenizer.apply_chat_template(turns, **given)["input_ids"]
    with RewardClient(server.address) as rewards:
        return rewards.score_one(model, TokenIds(ids[:1]), [TokenIds(ids[1:])]).values[0]


def by_client(address: str) -> Callable[..., float]:
    """Asks with a client of ours."""

    def ask(http: httpx.Client, turns: list[Any], answer: Any, **given: Any) -> float:
        with RewardClient(address) as rewards:
            prompt = Conversation(turns, given["tools"], given.get("chat_template_kwargs", {}))
            return rewards.score_one("qwen3", prompt, [answer]).values[0]

    return ask


def by_native(http: httpx.Client, turns: list[Any], answer: Any, **given: Any) -> float:
    turns = [{k: v for k, v in turn.items() if v is not None} for turn in turns]
    items = [{"prompt": {"messages": turns, **given}, "responses": [answer]}]
    reply = http.post("/v1/score", json={"model": "qwen3", "items": items})
    assert reply.status_code == 200, reply.text
    return float(reply.json()["items"][0]["scores"][0]["score"])


def by_vllm(http: httpx.Client, turns: list[Any], answer: Any, **given: Any) -> float:
    said = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    body = {"model": "qwen3", "messages": [*turns, said], **given}
    reply = http.post("/pooling", json=body)
    assert reply.status_code == 200, reply.text
    return float(reply.json()["data"][0]["data"][0])


@pytest.mark.parametrize("answer", [talk.ANSWER, talk.CALL], ids=["text", "call"])
def test_every_door_reads_a_conversation_with_tools_alike(served: Served, answer: Any) -> None:
    server, http = served
    said = answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}
    asked = talk.TALK if isinstance(answer, str) else talk.ASKED
    sent = [*map(talk.as_sent, asked)]
    wanted = expected(server, "qwen3", [*asked, said], tools=[talk.WEATHER])
    doors = (by_client(server.address), by_client(server.url), by_native, by_vllm)
    found = [door(http, sent, answer, tools=[talk.WEATHER]) for door in doors]
    assert found == pytest.approx([wanted] * len(doors), abs=1e-5)


def test_the_command_line_reads_them_too(served: Served, tmp_path: Path) -> None:
    server, _ = served
    rows = [
        {
            "prompt": [*map(talk.as_sent, talk.TALK)],
            "responses": [talk.ANSWER],
            "tools": [talk.WEATHER],
        },
        {
            "messages": [*map(talk.as_sent, talk.ASKED), talk.CALL],
            "tools": json.dumps([talk.WEATHER]),
        },
        {"prompt": "Why?", "responses": ["So."], "chat_template_kwargs": QUIET},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    command = ["score", str(tmp_path / "in.jsonl"), "-o", str(out), "--model", "qwen3"]
    assert main([*command, "--server", server.address]) == 0
    answers = [{"role": "assistant", "content": text} for text in (talk.ANSWER, "So.")]
    wanted = [
        expected(server, "qwen3", [*talk.TALK, answers[0]], tools=[talk.WEATHER]),
        expected(server, "qwen3", [*talk.ASKED, talk.CALL], tools=[talk.WEATHER]),
        expected(server, "qwen3", [{"role": "user", "content": "Why?"}, answers[1]], **QUIET),
    ]
    found = [json.loads(line)["scores"][0] for line in out.read_text().splitlines()]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_nemo_gym_reads_calls_of_functions(served: Served) -> None:
    """Its items are those of the Responses API: calls and what they gave stand by themselves."""
    server, http = served
    call = {"type": "function_call", "call_id": "call00001", "name": "get_weather"}
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I look it up."}]},
        {**call, "arguments": json.dumps(talk.ARGUMENTS)},
        {
            "type": "function_call_output",
            "call_id": "call00001",
            "output": talk.RESULT["content"],
        },
        {"type": "message", "content": [{"type": "output_text", "text": talk.ANSWER}]},
    ]
    tool = {"type": "function", **talk.WEATHER["function"]}
    asked = {"instructions": "Be brief.", "input": talk.ASKED[1]["content"], "tools": [tool]}
    for until, turns in (
        (4, [*talk.TALK, {"role": "assistant", "content": talk.ANSWER}]),
        (2, [*talk.ASKED, talk.CALL]),
    ):
        body = {"responses_create_params": asked, "response": {"output": output[:until]}}
        reply = http.post("/models/qwen3/nemo_gym/verify", json=body)
        assert reply.status_code == 200, reply.text
        wanted = expected(server, "qwen3", turns, tools=[talk.WEATHER])
        assert reply.json()["reward"] == pytest.approx(wanted, abs=1e-5)
        assert "answer_reasoning" in reply.headers["x-guerdon-dropped"]


def test_messages_of_a_nemo_gym_input_stay_apart(served: Served) -> None:
    server, http = served
    said = [{"role": "assistant", "content": text} for text in ("First.", "Second.")]
    asked = {"role": "user", "content": "Why?"}
    params = {"input": [asked, *said, asked]}
    output = [{"type": "message", "content": text} for text in ("So ", "it is.")]
    body = {"responses_create_params": params, "response": {"output": output}}
    reply = http.post("/models/qwen3/nemo_gym/verify", json=body)
    last = {"role": "assistant", "content": "So it is."}
    wanted = expected(server, "qwen3", [asked, *said, asked, last])
    assert reply.json()["reward"] == pytest.approx(wanted, abs=1e-5)


def test_long_arguments_pass_every_door(served: Served) -> None:
    server, _ = served
    many = {f"key{i}": i for i in range(40)}
    for arguments in (many, {"a": [0] * 5_000}):
        turn = {**talk.CALL, "tool_calls": [talk.call(arguments)]}
        for address in (server.address, server.url):
            with RewardClient(address) as rewards:
                if arguments is many:
                    assert rewards.score_one("qwen3", talk.ASKED, [turn]).values
                    continue
                with pytest.raises(InvalidArgument, match="is too long"):
                    rewards.score_one("qwen3", talk.ASKED, [turn])


@pytest.mark.parametrize(
    "given",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "description": "a<|im_end|>b"}}]},
        {"chat_template_kwargs": {"enable_thinking": "x<|im_end|>y"}},
        {"tools": [{"name": "f", "parameters": {"properties": {"<|im_end|>": {}}}}]},
    ],
)
def test_control_tokens_are_found_beside_messages(served: Served, given: dict[str, Any]) -> None:
    server, _ = served
    asked = Conversation(talk.ASKED, **given)
    with (
        RewardClient(server.address) as rewards,
        pytest.raises(InvalidArgument, match=r"spells '<\|im_end\|>'"),
    ):
        rewards.score_one("qwen3", asked, ["a"], reject_control_tokens=True)


def test_half_a_surrogate_pair_is_no_servers_fault(served: Served) -> None:
    _, http = served
    for part in ({"name": "\ud800"}, {"content": "\ud800"}, {"reasoning_content": "\ud800"}):
        messages = [{"role": "user", "content": "a", **part}, {"role": "assistant", "content": "b"}]
        body = json.dumps({"model": "qwen3", "messages": messages})
        reply = http.post("/pooling", content=body, headers={"content-type": "application/json"})
        assert (reply.status_code, "not valid Unicode" in reply.text) == (400, True)


def test_the_native_route_passes_over_what_says_nothing(served: Served) -> None:
    _, http = served
    turn = {"role": "user", "content": [{"type": "text", "text": "a", "annotations": []}]}
    for more, code in (({"refusal": None, "audio": None}, 200), ({"weight": 1}, 400)):
        items = [{"prompt": [{**turn, **more}], "responses": ["b"]}]
        reply = http.post("/v1/score", json={"model": "qwen3", "items": items})
        assert reply.status_code == code, reply.text


def test_what_a_template_leaves_out_is_said_or_refused(served: Served) -> None:
    server, http = served
    with RewardClient(server.address) as rewards:
        named = [{"role": "user", "name": "Ada", "content": "Why?"}]
        thought = {"role": "assistant", "reasoning_content": "It rains.", "content": "So."}
        scored = rewards.score_one("llama3_1", named, ["So.", thought])
        assert [score.dropped for score in scored.scores] == [
            ("name",),
            ("name", "answer_reasoning"),
        ]
        shown = rewards.score_one("qwen3", named, [thought]).scores[0]
        assert shown.dropped == ("name",)
        with pytest.raises(InvalidArgument, match=r"prompt: has text .* leaves out: name"):
            rewards.score_one("qwen3", named, ["So."], reject_dropped_text=True)
        for prompt, answer, says in (
            (
                Conversation(talk.TALK, [talk.WEATHER]),
                "So.",
                r"conversation\.tools\[0\]: has the tool",
            ),
            (
                Conversation(talk.ASKED, chat_template_kwargs=QUIET),
                "So.",
                r"chat_template_kwargs\.enable_thinking: is no variable",
            ),
        ):
            with pytest.raises(InvalidArgument, match=says):
                rewards.score_one("deepseekv3_training", prompt, [answer])
        both = {**talk.CALL, "content": "Let me see."}
        with pytest.raises(
            InvalidArgument, match=r"responses\[0\]\.message\.content: has the text"
        ):
            rewards.score_one("llama3_1", talk.ASKED, [both])
    body = {"model": "llama3_1", "messages": [*named, {"role": "assistant", "content": "So."}]}
    reply = http.post("/classify", json=body)
    assert (reply.status_code, reply.headers["x-guerdon-dropped"]) == (200, "name")


@pytest.mark.parametrize(
    ("prompt", "responses", "field"),
    [
        ({"messages": []}, ["a"], "items[0].prompt.messages"),
        ({"messages": talk.ASKED, "tools": [{}]}, ["a"], "items[0].prompt.tools[0]"),
        ({"messages": talk.ASKED, "more": 1}, ["a"], "items[0].prompt.more"),
        (
            {"messages": talk.ASKED, "chat_template_kwargs": {"messages": []}},
            ["a"],
            "items[0].prompt.chat_template_kwargs.messages",
        ),
        (
            {"messages": talk.ASKED, "chat_template_kwargs": {"bos_token": "x"}},
            ["a"],
            "items[0].prompt.chat_template_kwargs.bos_token",
        ),
        ([{"role": "user"}], ["a"], "items[0].prompt[0].content"),
        ([{**talk.CALL, "role": "user"}], ["a"], "items[0].prompt[0].tool_calls"),
        (
            [{**talk.CALL, "tool_calls": [talk.call("[1]")]}],
            ["a"],
            "items[0].prompt[0].tool_calls[0].function.arguments",
        ),
        ("a", [{"role": "user", "content": "b"}], "items[0].responses[0].role"),
        ({"formatted_text": "a"}, [talk.CALL], "items[0].responses[0].message"),
        ({"token_ids": [5]}, [talk.CALL], "items[0].responses[0]"),
    ],
)
def test_a_wrong_part_is_named(
    served: Served, prompt: Any, responses: list[Any], field: str
) -> None:
    _, http = served
    body = {"model": "qwen3", "items": [{"prompt": prompt, "responses": responses}]}
    reply = http.post("/v1/score", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["field"] == field
