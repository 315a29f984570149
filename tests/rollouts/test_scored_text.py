"""What a real reward server is asked: the very tokens that were drawn, or all of their text.

The reference is plain `transformers` on the tokens that the completion has.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.rollouts.support import tokenizer
from tests.service.conftest import start_server
from tests.service.test_pairwise import RealLoader
from tests.support.tiny import CHATML, STEP, TURN_END, tiny_checkpoint
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from guerdon.client.types import ModelInfo
from guerdon.models import Manifest
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.policy_text import PolicyText, answer_text, opening
from guerdon.trainer.common.services.reward_requests import RequestRules
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task

TURNS = ({"role": "user", "content": "What is 12 + 30?"},)
WORDS = tokenizer()
END = WORDS.convert_tokens_to_ids(TURN_END)
PROMPT: list[int] = WORDS.apply_chat_template(list(TURNS), add_generation_prompt=True)["input_ids"]
AFTER: list[int] = WORDS(f"{TURN_END}\n", add_special_tokens=False)["input_ids"]
OPENS = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
STRIPS = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +")


def ids_of(text: str) -> list[int]:
    """Canonical tokens of a text."""
    found: list[int] = WORDS(text, add_special_tokens=False)["input_ids"]
    return found


def spelled(text: str) -> list[int]:
    """A token for each byte, which no tokenizer makes of it."""
    return [token for letter in text for token in ids_of(letter)]


def drawn(*answers: Sequence[int]) -> Group:
    """A group of completions that ended by themselves."""
    task = Task(0, PromptRow(6, TURNS), np.array(PROMPT, np.int32))  # type: ignore[arg-type]
    samples = []
    for i, answer in enumerate(answers):
        ids = [*answer, END]
        zeros = np.zeros(len(ids), np.int32)
        text = answer_text(WORDS, ids, finished=True)
        samples.append(
            Sample(
                0,
                i,
                task.prompt_ids_P,
                np.array(ids, np.int32),
                zeros.astype(np.float32),
                zeros,
                True,
                text,
            )
        )
    return Group(task, samples)


@asynccontextmanager
async def rewarded(folder: Path, weight: str = "", **rules: Any) -> AsyncIterator[RewardSource]:
    """Rewards by a server in this process that holds the folder."""
    applied = RequestRules(text=PolicyText.of(WORDS, TURNS), **rules)  # type: ignore[arg-type]
    async with start_server(RealLoader(), models={"m": str(folder)}) as server:
        address = f"{weight}127.0.0.1:{server.ports.port}/m"
        source = RewardSource([address], patience=20.0, request_timeout=20.0, rules=applied)
        try:
            await source.start()
            yield source
        finally:
            await source.close()


@torch.no_grad()
def plain(folder: Path, answer: Sequence[int]) -> float:
    """The score of prompt, answer and the template's ending, by transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    return float(model(torch.tensor([[*PROMPT, *answer, *AFTER]])).logits[0, 0])


@torch.no_grad()
def plain_steps(folder: Path, answer: Sequence[int]) -> float:
    """The least log-odds at the answer's step markers, by transformers alone."""
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [*PROMPT, *answer, *AFTER]
    logits_LK = model(torch.tensor([ids])).logits[0]
    marker = WORDS.convert_tokens_to_ids(STEP)
    return min(float(logits_LK[i, 1] - logits_LK[i, 0]) for i, t in enumerate(ids) if t == marker)


@pytest.fixture
def rm(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "rm", "llama")


@pytest.fixture
def prm(tmp_path: Path) -> Path:
    folder = tiny_checkpoint(tmp_path / "prm", "llama", num_labels=2, token_classification=True)
    Manifest(kind="process", step_marker=STEP).write(folder)
    return folder


async def test_the_tokens_that_were_drawn_are_scored(rm: Path) -> None:
    answers = [ids_of("It is water."), spelled("It is water."), []]
    assert answers[0] != answers[1]
    async with rewarded(rm) as source:
        scored = await source.score(drawn(*answers))
    found = [sample.reward for sample in scored.samples]
    assert found == pytest.approx([plain(rm, answer) for answer in answers], abs=1e-4)
    assert abs(found[0] - found[1]) > 1e-2  # the texts are the same


async def test_another_template_or_vocabulary_is_sent_text(rm: Path) -> None:
    tiny_checkpoint(rm, "llama", chat_template=CHATML + " ")
    async with rewarded(rm) as source:
        scored = await source.score(drawn(ids_of("It is"), spelled("It is")))
    one, other = (sample.reward for sample in scored.samples)
    assert one == pytest.approx(other, abs=1e-5)


async def test_text_that_the_rewards_template_leaves_out_is_said_once(
    rm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_checkpoint(rm, "llama", chat_template=STRIPS)
    answers = [ids_of("<think>one</think>42."), ids_of("<think>two</think>42."), ids_of("42.")]
    async with rewarded(rm) as source:
        for _ in range(2):
            scored = await source.score(drawn(*answers))
        (served,) = source.served
        assert served.dropped == 4
    one, *others = [sample.reward for sample in scored.samples]
    assert others == pytest.approx([one, one], abs=1e-5)
    (said,) = [message for message in caplog.messages if "rewards don't depend" in message]
    assert "answer reasoning of the prompt of row 7" in said


async def test_step_markers_reach_a_process_model_and_one_without_does_not_end_it(
    prm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [ids_of(f"12 + 30{STEP} = 42.{STEP}"), ids_of("42."), [*spelled("It"), *ids_of(STEP)]]
    async with rewarded(prm) as source:
        scored = await source.score(drawn(*answers))
        (served,) = source.served
        assert served.refusals == 1
    first, refused, third = scored.samples
    wanted = [plain_steps(prm, answers[0]), plain_steps(prm, answers[2])]
    assert [first.reward, third.reward] == pytest.approx(wanted, abs=1e-4)
    assert [sample.refused for sample in scored.samples] == [False, True, False]
    assert refused.reward == min(-10.0, *wanted)
    assert "has no step marker" in caplog.text
    async with rewarded(prm, refused="stop") as source:
        with pytest.raises(ServiceRefused, match=r"has no step marker.*the prompt is row 7"):
            await source.score(drawn(*answers))


async def test_a_model_that_refuses_everything_ends_the_run(prm: Path) -> None:
    async with rewarded(prm) as source:
        for _ in range(9):
            await source.score(drawn(*[ids_of("42.")] * 11))
        with pytest.raises(ServiceRefused, match=r"refused all of the first 100 .*step"):
            await source.score(drawn(ids_of("42.")))


async def test_answers_that_may_be_too_long_are_refused_at_the_start(rm: Path) -> None:
    with pytest.raises(SettingsError, match=r"takes 256 tokens, .* may have 302 .*max_tokens"):
        async with rewarded(rm, longest=300):
            pass
    long = ids_of("good answer " * 60)
    async with rewarded(rm, longest=300, too_long="allow") as source:
        scored = await source.score(drawn(ids_of("It is"), long))
    assert [sample.refused for sample in scored.samples] == [False, True]


async def test_a_prompt_may_give_way(rm: Path) -> None:
    answer = ids_of("good answer " * 48)
    assert len(answer) + len(AFTER) <= 256 < len(PROMPT) + len(answer) + len(AFTER)
    async with rewarded(rm, longest=300, too_long="prompt-left") as source:
        scored = await source.score(drawn(ids_of("It is"), answer))
    assert not scored.samples[1].refused
    model = AutoModelForSequenceClassification.from_pretrained(rm, dtype=torch.float32).eval()
    model.config.pad_token_id = None
    with torch.no_grad():
        kept = torch.tensor([[*PROMPT, *answer, *AFTER][-256:]])
        assert scored.samples[1].reward == pytest.approx(float(model(kept).logits[0, 0]), abs=1e-4)


def test_a_penalty_is_never_better_than_a_score() -> None:
    rules = RequestRules(penalty=-2.0)
    assert rules.filled([1.0, None, -3.0], 0.5) == [1.0, -3.0, -3.0]
    assert rules.filled([1.0, None], 1.0) == [1.0, -2.0]
    assert rules.filled([None, None], 1.0) == [-2.0, -2.0]
    assert rules.filled([1.0, None, 5.0], -1.0) == [1.0, 5.0, 5.0]  # a cost: high is worse
    assert rules.filled([1.0, None], -1.0) == [1.0, 2.0]


def test_token_ids_stand_for_the_text_only_where_the_template_keeps_it() -> None:
    model = ModelInfo(name="m", revision="r")

    def ending(template: str) -> tuple[PolicyText, list[int]]:
        words = copy.deepcopy(WORDS)
        words.chat_template = template
        found = PolicyText.of(words, TURNS)  # type: ignore[arg-type]
        return found, list(found.ending_ids)

    same, after = ending(CHATML)
    assert after == AFTER
    assert not same.shares_tokens(model)
    assert ending(OPENS)[1] == AFTER
    assert ending(STRIPS)[1] == []
    assert ending("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")[1] == []


def test_what_opens_the_answer() -> None:
    words = copy.deepcopy(WORDS)
    for template, opened in ((CHATML, ""), (OPENS, "<think>\n")):
        words.chat_template = template
        before = words.apply_chat_template(list(TURNS), tokenize=False, add_generation_prompt=True)
        assert opening(words, TURNS, before) == opened  # type: ignore[arg-type]
