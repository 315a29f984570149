"""`guerdon data pairs`: from a sampler and rewards to rows that DPO takes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.fine_tune.support import inputs_of, settings_of
from tests.rft.support import group_of
from tests.support.command import read_rows
from tests.support.tiny import tiny_checkpoint
from tests.support.tools import ASKED, CALL, RESULT, WEATHER, published
from tests.trainer.toy import WORDS, write_rows
from transformers import AutoTokenizer

from guerdon.cli.main import main
from guerdon.client.testing import FakePolicyServer, FakeRewardServer
from guerdon.data import parse_pair
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.pair_selection import pick_pairs
from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.preference_data.settings import PairsSettings

MOST = 6


def settings(**changes: Any) -> PairsSettings:
    values: dict[str, Any] = {
        "policy": "p", "sampler": "s:1", "prompts": "f", "output": "o", "verifier": ("exact",),
    }  # fmt: skip
    return PairsSettings(**(values | changes))


ANSWERS = [([1], 0.5), ([2], 2.0), ([3], -1.0), ([4], 2.0), ([2], 2.0)]


@pytest.mark.parametrize(
    ("more", "texts"),
    [
        ({}, [("2", "3")]),
        ({"min_margin": 3.0}, []),
        ({"pick": "all"}, [("2", "3"), ("4", "3"), ("2", "1"), ("4", "1"), ("1", "3")]),
        ({"pick": "all", "max_per_prompt": 2}, [("2", "3"), ("4", "3")]),
        ({"pick": "all", "min_margin": 1.5}, [("2", "3"), ("4", "3")]),
    ],
)
def test_which_answers_make_pairs(more: dict[str, Any], texts: list[tuple[str, str]]) -> None:
    found = pick_pairs([group_of(0, [7], ANSWERS)], settings(**more))
    assert sorted((a.text, b.text) for _, a, b in found.pairs) == sorted(texts)
    assert found.left_out["copies"] == 1
    assert found.left_out["no_pair"] == (not texts)


def test_a_random_worse_one_is_drawn_by_the_seed() -> None:
    answers = [([i], float(i)) for i in range(1, 9)]
    groups = [group_of(uid, [7], answers) for uid in range(40)]
    drawn = pick_pairs(groups, settings(pick="random")).pairs
    assert {chosen.text for _, chosen, _ in drawn} == {"8"}
    assert len({rejected.text for *_, rejected in drawn}) == 7
    again = pick_pairs(groups[::-1], settings(pick="random")).pairs
    assert [id(b) for *_, b in drawn] == [id(b) for *_, b in again[::-1]]
    other = pick_pairs(groups, settings(pick="random", seed=1)).pairs
    assert [id(b) for *_, b in drawn] != [id(b) for *_, b in other]


def test_what_was_cut_or_says_nothing_is_left_out() -> None:
    cut = group_of(0, [7], ANSWERS, finished=False)
    found = pick_pairs([cut], settings())
    assert (found.pairs, found.left_out["unfinished"]) == ([], 5)
    assert len(pick_pairs([cut], settings(unfinished=True)).pairs) == 1
    silent = group_of(0, [7], ANSWERS)
    silent.samples[2].text = " \n"
    (pair,) = pick_pairs([silent], settings()).pairs
    assert pair[2].text == "1"


def test_answers_are_judged_by_what_they_earned() -> None:
    """Online DPO takes a penalty from what was cut: it is worse than it was scored."""
    group = group_of(0, [7], ANSWERS)
    for place in (1, 4):  # the same text
        group.samples[place].finished = False

    def earned(sample: Sample) -> float:
        return sample.reward - (0 if sample.finished else 4)

    rule = settings(unfinished=True)
    ((_, better, worse),) = pick_pairs([group], rule, earned).pairs
    assert (better.index, worse.index) == (3, 1)
    assert not pick_pairs([group], settings(unfinished=True, min_margin=4.0), earned).pairs


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"verifier": ()}, "nothing gives rewards"),
        ({"samples_per_prompt": 1}, "samples_per_prompt must be at least 2"),
        ({"max_per_prompt": 3}, "max_per_prompt is for pick = all"),
        ({"min_margin": -1.0}, "min_margin is -1.0"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        settings(**changes)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("policy") / "m", "llama", causal_lm=True)


class World:
    """Both services, made up, over real sockets; an answer's reward is its number of `good`."""

    def __init__(self, policy: Path, folder: Path, prompts: int = 12) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(policy)
        self.sampler = FakePolicyServer(self.draw)
        self.sampler.eos = self.tokenizer.eos_token_id
        self.rewards = FakeRewardServer(lambda prompt, answer: float(answer.count("good")))
        self.policy, self.output = policy, folder / "run"
        rows = [{"prompt": f"question {i}"} for i in range(prompts)]
        self.prompts = write_rows(folder / "prompts.jsonl", rows)

    def draw(
        self, prompt: Sequence[int], seed: int | None, sample: int
    ) -> tuple[list[int], list[float]]:
        chance = random.Random(f"{seed}/{sample}")
        words = " ".join(chance.choices([*WORDS, "good"], k=chance.randint(1, 4)))
        ids = self.tokenizer(words, add_special_tokens=False)["input_ids"][: MOST - 1]
        ids.append(self.tokenizer.eos_token_id)
        return ids, [-1.0] * len(ids)

    def arguments(self, *more: str) -> list[str]:
        return [
            "data",
            "pairs",
            "--policy",
            str(self.policy),
            "--sampler",
            self.sampler.target,
            "--reward",
            f"{self.rewards.target}/fake",
            "--prompts",
            str(self.prompts),
            "--output",
            str(self.output),
            "--max-tokens",
            str(MOST),
            "--samples-per-prompt",
            "6",
            "--patience",
            "5",
            *more,
        ]

    def pairs(self) -> list[dict[str, Any]]:
        return read_rows(self.output / "pairs.jsonl")

    def drawn(self) -> int:
        return sum(method == "Generate" for method, _ in self.sampler.calls)


def test_pairs_of_the_policys_own_answers(
    policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(policy, tmp_path)
    with world.sampler, world.rewards:
        assert main(world.arguments()) == 0
        printed = capfd.readouterr().err
        rows = world.pairs()
        assert f"{len(rows)} pairs of 72 answers to 12 prompts" in printed
        assert 3 <= len(rows) <= 12
        for row in rows:
            pair = parse_pair(row)
            assert pair.prompt == [{"role": "user", "content": f"question {row['prompt_index']}"}]
            assert row["chosen_reward"] == pair.chosen[0]["content"].count("good")
            assert row["rejected_reward"] == pair.rejected[0]["content"].count("good")
            assert row["margin"] == row["chosen_reward"] - row["rejected_reward"] > 0
        summary = json.loads((world.output / "summary.json").read_text())
        assert summary["pairs"] == len(rows)
        assert summary["left_out"]["no_pair"] == 12 - len(rows)
        assert summary["finished"] == 1.0
        assert world.sampler.version == 0  # its weights are left as they are
        assert main(world.arguments("--resume", "--pick", "all")) == 0  # nothing is drawn again
        assert len(world.pairs()) > len(rows)
        assert world.drawn() == 12
        assert main(world.arguments()) == 2
        assert "--resume goes on with it" in capfd.readouterr().err
    # And they are what DPO takes.
    train = [
        "train",
        "dpo",
        "--policy",
        str(policy),
        "--train",
        str(world.output / "pairs.jsonl"),
        "--eval",
        str(world.output / "pairs.jsonl"),
        "--output",
        str(tmp_path / "dpo"),
        "--dry-run",
    ]
    assert main(train) == 0


def test_pairs_are_trained_on_with_the_tools_that_they_were_sampled_with(tmp_path: Path) -> None:
    policy = tiny_checkpoint(
        tmp_path / "policy",
        "llama",
        causal_lm=True,
        max_positions=2048,
        chat_template=published("qwen3"),
    )
    world = World(policy, tmp_path)
    rows = [
        {"prompt": ASKED, "tools": [WEATHER], "chat_template_kwargs": {"enable_thinking": False}},
        {"prompt": [*ASKED, CALL, RESULT], "tools": json.dumps([WEATHER])},
        {"prompt": ASKED, "tools": None},
    ]
    world.prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    sampled: dict[tuple[int, ...], None] = {}
    draw = world.draw

    def drawn(prompt: Sequence[int], *how: Any) -> tuple[list[int], list[float]]:
        sampled[tuple(prompt)] = None
        return draw(prompt, *how)

    world.sampler = FakePolicyServer(drawn)
    world.sampler.eos = world.tokenizer.eos_token_id
    with world.sampler, world.rewards:
        more = ["--max-prompt-tokens", "2000", "--samples-per-prompt", "16"]
        assert main(world.arguments(*more)) == 0
    pairs = world.pairs()
    assert [row.get("tools") for row in pairs] == [[WEATHER], [WEATHER], None]
    data = world.output / "pairs.jsonl"
    settings = settings_of("dpo", policy, (data, data), tmp_path / "dpo", max_length=2000)
    assert {tuple(pair.prompt) for pair in inputs_of(settings).train.rows} == sampled.keys()


def test_a_run_that_was_broken_goes_on(
    policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    for folder in (whole, broken):
        folder.mkdir()
    world = World(policy, whole)
    with world.sampler, world.rewards:
        assert main(world.arguments()) == 0
    other = World(policy, broken)
    with other.sampler, other.rewards:
        count = 0
        score = other.rewards._score

        def failing(prompt: Any, answer: Any) -> float:
            nonlocal count
            count += 1
            if count > 30:
                raise RuntimeError("the model broke")
            return score(prompt, answer)

        other.rewards.add_revision("fake", "rev-1", failing)
        assert main(other.arguments("--in-flight", "1")) == 1
        assert not (other.output / "pairs.jsonl").exists()
        other.rewards.add_revision("fake", "rev-1", score)
        capfd.readouterr()
        assert main(other.arguments("--in-flight", "1", "--resume")) == 1 - 1
        assert "resuming with 5 prompts sampled and scored" in capfd.readouterr().err
        assert other.drawn() == 6 + 7  # five, the one that broke, and the seven that were left
    assert other.pairs() == world.pairs()


def test_services_that_are_away_or_refuse(
    policy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(policy, tmp_path)
    with world.rewards:
        assert main([*world.arguments(), "--sampler", "127.0.0.1:1", "--patience", "0.5"]) == 3
        assert "the sampler at 127.0.0.1:1 gave no answer" in capfd.readouterr().err
        with world.sampler:
            code = grpc.StatusCode.PERMISSION_DENIED
            world.sampler.fail(code, "not you", method="Generate", times=99)
            assert main(world.arguments("--resume")) == 1
            assert "PERMISSION_DENIED: not you" in capfd.readouterr().err
    flat = World(policy, tmp_path / "flat") if (tmp_path / "flat").mkdir() is None else world
    flat.rewards = FakeRewardServer(lambda prompt, answer: 1.0)
    with flat.sampler, flat.rewards:
        assert main(flat.arguments()) == 2
        assert "no pair can be made" in capfd.readouterr().err
