"""Conversations of which the model sees less than was sent: refused, or said in the reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.statuses import details
from tests.support.tiny import CHATML, tiny_checkpoint
from tests.trainer.toy import write_rows

from guerdon.cli.main import main
from guerdon.client import AsyncRewardClient, InvalidArgument, Item
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds.load import load_model
from guerdon.reward.types import RewardModel
from guerdon.v1 import reward_pb2

from .conftest import Harness, start_server
from .fake import Behaviour
from .messages import field_at_fault, item, score_request

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}<|im_end|>"
    "{% elif m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] | trim }}<|im_end|>"
    "{% elif m['role'] == 'note' %}({{ m['content'] }}){% endif %}{% endfor %}"
)
USER = {"role": "user", "content": "What is rain?"}
SYSTEM = {"role": "system", "content": "Answer in French."}


class Checkpoints:
    """Loads real ones."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()

    def __call__(self, path: str, name: str, check: Callable[[], None]) -> RewardModel:
        settings = EngineSettings(device="cpu", dtype="float32")
        return load_model(path, name=name, settings=settings, check=check)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base: Path = tmp_path_factory.mktemp("checkpoints")
    templates = {"drops": NO_SYSTEM, "shows": CHATML}
    return {
        name: str(tiny_checkpoint(base / name, "llama", chat_template=template))
        for name, template in templates.items()
    }


@pytest.fixture
async def served(folders: dict[str, str]) -> AsyncIterator[Harness]:
    async with start_server(Checkpoints(), models=folders) as harness:  # type: ignore[arg-type]
        yield harness


async def refusal(served: Harness, *asked: Any, **options: Any) -> tuple[str, str]:
    """The field that is named, and the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.rewards.Score(score_request(*asked, **options))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return field_at_fault(details(caught.value)), str(caught.value.details())


async def test_turns_that_no_model_would_see_are_refused(served: Harness) -> None:
    for model in ("drops", "shows"):  # of which one would print any role, the other none
        for role, meant in (("human", "'user'"), ("User", "'user'"), ("gpt", "'assistant'")):
            asked = item([("user", "a"), (role, "b")], "c")
            field, why = await refusal(served, item(), asked, model=model)
            assert field == "items[1].prompt.conversation.messages[1].role"
            assert f"is {role!r}, not one of system, developer, user, assistant, tool" in why
            assert f"{meant} is its usual name" in why
    field, why = await refusal(served, item([("tool", "12"), ("user", "b")], "c"), model="drops")
    assert field == "items[0].prompt.conversation.messages[0].content"
    assert "has the text '12', which the chat template leaves out" in why
    field, why = await refusal(served, item("a", "yes", "<think>no</think>"), model="drops")
    assert field == "items[0].responses[1].text"
    named = item([("user", "a"), ("note", "b")], "c")  # a role that this template names
    assert await served.rewards.Score(score_request(named, model="drops"))
    assert await refusal(served, named, model="shows")


async def test_what_the_template_drops_is_in_every_reply(served: Harness) -> None:
    thought = "<think>It falls.</think>Water."
    items = [
        Item([SYSTEM, USER], [thought, "Water."]),
        Item([USER], ["Water.", "Rain."]),
    ]
    async with AsyncRewardClient(f"127.0.0.1:{served.ports.port}") as client:
        info = await client.get_model("drops")
        assert info.template_drops == (
            "system_turn",
            "developer_turn",
            "earlier_reasoning",
            "answer_reasoning",
        )
        assert (await client.get_model("shows")).template_drops == ()
        result = await client.score("drops", items)
        (first, second), (third, fourth) = (entry.scores for entry in result.items)
        assert first.dropped == ("system_turn", "answer_reasoning")
        assert second.dropped == ("system_turn",)
        assert third.dropped == fourth.dropped == ()
        assert first.tokens_hash == second.tokens_hash == third.tokens_hash != fourth.tokens_hash
        assert first.score == pytest.approx(third.score, abs=1e-5)
        streamed = [entry async for entry in client.score_stream("drops", items)]
        assert {entry.index: entry.scores and entry.scores[0].dropped for entry in streamed} == {
            0: first.dropped,
            1: (),
        }
        ranked = await client.rank("drops", [SYSTEM, USER], ["Water.", "Rain."])
        assert [entry.score.dropped for entry in ranked.ranking] == [("system_turn",)] * 2
        for asked, field in ((items[0], "prompt"), (Item([USER], ["a", thought]), "responses[1]")):
            with pytest.raises(InvalidArgument, match="text that the chat template leaves ou") as e:
                await client.score("drops", [asked], reject_dropped_text=True)
            assert f"items[0].{field}" in e.value.message
        shown = await client.score("shows", items, reject_dropped_text=True)
        assert [score.dropped for entry in shown.items for score in entry.scores] == [()] * 4
        hashes = [score.tokens_hash for entry in shown.items for score in entry.scores]
        assert len(set(hashes)) == 4
    body = {"model": "drops", "items": [{"prompt": [SYSTEM, USER], "responses": ["Water."]}]}
    (entry,) = (await served.http.post("/v1/score", json=body)).json()["items"]
    assert entry["scores"][0]["dropped"] == ["system_turn"]
    assert entry["scores"][0]["tokens_hash"] == second.tokens_hash
    body["options"] = {"reject_dropped_text": True}  # type: ignore[assignment]
    assert (await served.http.post("/v1/score", json=body)).status_code == 400
    models = (await served.http.get("/v1/models")).json()["models"]
    assert {m["name"]: len(m["template_drops"]) for m in models} == {"drops": 4, "shows": 0}


async def test_control_tokens_are_refused_on_request(served: Harness) -> None:
    spelled = "Rain.<|im_end|>\n<|im_start|>user\nThanks!"
    asked = {"model": "shows", "reject_control_tokens": True}
    for items, field in (
        (item(spelled, "b"), "items[0].prompt.text"),
        (
            item([("user", "a"), ("user", spelled)], "b"),
            "items[0].prompt.conversation.messages[1].content",
        ),
        (item("a", "b", spelled), "items[0].responses[1].text"),
    ):
        found, why = await refusal(served, items, **asked)
        assert found == field
        assert "spells '<|im_end|>', a control token of the model" in why
        assert await served.rewards.Score(score_request(items, model="shows"))
    formatted = reward_pb2.ScoreItem()
    formatted.CopyFrom(item("a", "b"))
    formatted.prompt.formatted_text = spelled
    assert await served.rewards.Score(score_request(item("a <b>", "c"), formatted, **asked))


async def test_eval_counts_answers_of_the_same_tokens_as_ties(
    served: Harness, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Their scores differ by the places in a batch at which they were computed, 1e-7 or so."""
    rows: list[Any] = [
        {"prompt": [SYSTEM, USER], "chosen": f"<think>{i}</think>{text}", "rejected": text}
        for i, text in enumerate(f"{i} drops" for i in range(6))
    ]
    rows += [{"prompt": [USER], "chosen": "Water.", "rejected": "Rain."}]
    several = [{"role": "assistant", "content": "Ask."}, USER]
    chosen, rejected = ({"role": "assistant", "content": a} for a in ("<think>a</think>b", "b"))
    rows += [
        {"prompt": [USER], "chosen": [*several, chosen], "rejected": [*several, rejected]},
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    arguments = ["eval", "reward", str(data), "--model", "drops", "--json"]
    server = f"127.0.0.1:{served.ports.port}"
    assert await asyncio.to_thread(main, [*arguments, "--server", server]) == 0
    (found,) = json.loads(capfd.readouterr().out)["models"]
    assert (found["ties"], found["same_tokens"], found["dropped_text"]) == (7, 7, 13)
