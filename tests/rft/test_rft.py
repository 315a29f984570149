"""Whole runs of RFT: a fake sampler that draws by what was published, TRL's real trainer."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.rft.living import LivingPolicy
from tests.rft.support import rft_settings_of
from tests.rft.test_sft import interrupt_at
from tests.runs.processes import train
from tests.support.command import read_rows, write_jsonl
from tests.support.forked import Child
from tests.support.metric_keys import describe
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.client.sync import run as run_there
from guerdon.client.testing import FakeRewardServer
from guerdon.trainer.common.errors import DataError, SettingsError, TrainingError
from guerdon.trainer.common.services.drawing import Drawing
from guerdon.trainer.common.services.scored_store import ScoredGroups
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.rl.folder import RLFolder
from guerdon.trainer.rl.rft import run as rft
from guerdon.trainer.rl.settings import RFTSettings

TOKENS = 5


@pytest.fixture
def living(tiny: Path) -> Iterator[LivingPolicy]:
    """A sampler that serves."""
    policy = LivingPolicy(tiny, TOKENS)
    with policy.server:
        yield policy


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[str, str]:
    """Files of prompts."""
    words = ["rain", "sun", "egg", "Rome", "Paris", "tens", "help", "eight", "put", "hot"]
    train = [{"prompt": f"{word} {i}", "answer": word} for i, word in enumerate(words)]
    held_out = [{"prompt": f"the {word}?", "answer": word} for word in words[:8]]
    return (
        str(write_jsonl(tmp_path / "train.jsonl", train)),
        str(write_jsonl(tmp_path / "eval.jsonl", held_out)),
    )


def settings_for(
    tiny: Path, prompts: tuple[str, str], sampler: str, output: Path, **more: Any
) -> RFTSettings:
    values: dict[str, Any] = {
        "policy": str(tiny),
        "sampler": sampler,
        "prompts": prompts[0],
        "eval_prompts": prompts[1],
        "output": str(output),
        "verifier": ("regex:[ae]",),
        "samples_per_prompt": 8,
        "max_tokens": TOKENS,
        "lr": 1e-3,
        "epochs": 8.0,
        "checkpoint_every": 4,
        "eval_samples": 8,
        "plots": False,
        "patience": 10.0,
        "deterministic": True,
        "keep_cut": True,
    }
    if "steps" in more:  # the two exclude each other
        del values["epochs"]
    return rft_settings_of(**(values | more))


def run(settings: RFTSettings, *, resume: bool = False) -> tuple[dict[str, Any], str]:
    """A whole run in this process, and what it printed."""
    text = io.StringIO()
    folder = RLFolder(settings, resume=resume)
    return rft.train(
        settings, folder, Console(file=text, width=100), resume=resume
    ), text.getvalue()


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "final" / "model.safetensors")


def test_a_whole_run_learns_what_was_accepted(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"plots": True, "samples_per_prompt": 24, "lr": 3e-3}
    settings = settings_for(tiny, prompts, living.server.target, tmp_path / "run", **more)
    summary, printed = run(settings)
    before, after = summary["before"]["reward"]["mean"], summary["after"]["reward"]["mean"]
    assert 0.1 < before < 0.75
    assert after > before + 0.2
    assert summary["reward_rose"]
    assert summary["before"]["kl"]["mean"] == 0
    assert summary["after"]["kl"]["mean"] > 0.1
    assert "kept" in printed

    # What was published: the first policy, then what is in final/; both with proof.
    assert [(u.version, u.reset) for u in living.server.updates] == [(1, True), (2, True)]
    assert all(len(u.canaries) == 4 for u in living.server.updates)
    saved, published = final_weights(tmp_path / "run"), living.weights()
    assert set(published) == set(saved)
    for name, value in published.items():
        assert torch.equal(value, saved[name]), name
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    assert reloaded.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "final").chat_template

    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert {key for row in rows for key in row if describe(key) is None} == set()
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, summary["steps"] + 1))
    sampled = next(row for row in rows if "accepted" in row)
    assert sampled["completions"] == 240 == summary["completions"]
    assert summary["kept"] == round(sampled["accepted"] * 240)
    kinds = [row["kind"] for row in read_rows(tmp_path / "run" / "samples.jsonl")]
    assert [kinds.count(k) for k in ("before", "train", "after")] == [64, settings.sample_rows, 64]
    assert list((tmp_path / "run" / "plots").glob("*.png"))
    assert {"load", "publish", "evaluate", "sample", "learn", "save"} <= summary["seconds"].keys()


def test_the_tokens_that_are_learned_are_those_that_were_drawn(
    tiny: Path,
    prompts: tuple[str, str],
    living: LivingPolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: set[tuple[int, ...]] = set()
    draw = living.server.draw

    def recorded(prompt: Any, seed: Any, sample: int, most: int) -> Any:
        ids, logprobs = draw(prompt, seed, sample, most)
        sent.add((*prompt, -1, *ids))
        return ids, logprobs

    monkeypatch.setattr(living.server, "draw", recorded)
    seen: list[Any] = []
    tune = rft.sft.fine_tune

    def watched(model: Any, tokenizer: Any, samples: Any, *args: Any) -> int:
        seen.extend(samples)
        return tune(model, tokenizer, samples, *args)

    monkeypatch.setattr(rft.sft, "fine_tune", watched)
    settings = settings_for(tiny, prompts, living.server.target, tmp_path / "run", steps=1)
    run(settings)
    assert len(seen) > 10
    for sample in seen:
        assert (*sample.prompt_ids_P.tolist(), -1, *sample.response_ids_T.tolist()) in sent
        assert sample.reward == 1.0


class Killed(BaseException):
    """Stands for the end of the process."""


def die_after_groups(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    whole = ScoredGroups.add

    def add(self: ScoredGroups, group: Group) -> None:
        whole(self, group)
        if len(self) == count:
            raise Killed

    monkeypatch.setattr(ScoredGroups, "add", add)


def die_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int = 1) -> None:
    """At the given call of a method."""
    whole, calls = getattr(owner, name), [0]

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise Killed
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


POINTS = {
    "in the first evaluation": lambda patch: die_in(patch, rft.SampleTable, "add"),
    "after the first evaluation": lambda patch: die_in(patch, ScoredGroups, "begin"),
    "at the first group": lambda patch: die_after_groups(patch, 1),
    "in the sampling": lambda patch: die_after_groups(patch, 6),
    "at the last group": lambda patch: die_after_groups(patch, 10),
    "after the sampling": lambda patch: die_in(patch, rft.RFTRun, "_fine_tune"),
    "before the first checkpoint": lambda patch: interrupt_at(patch, 2),
    "in fine-tuning": lambda patch: interrupt_at(patch, 11),
    "after fine-tuning": lambda patch: die_in(patch, rft.RFTRun, "_measure"),
    "in the last evaluation": lambda patch: die_in(patch, rft.RFTRun, "_evaluated", at=2),
    "before the policy": lambda patch: die_in(patch, rft.RFTRun, "_finish"),
    "before the summary": lambda patch: die_in(patch, RLFolder, "write_summary"),
}


@pytest.fixture(scope="module")
def unbroken(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    files = (folder / "train.jsonl", folder / "eval.jsonl")
    policy = LivingPolicy(tiny, TOKENS)
    with policy.server:
        prompts_here(files)
        settings = settings_for(
            tiny, (str(files[0]), str(files[1])), policy.server.target, folder / "run", epochs=4.0
        )
        run(settings)
    return folder / "run"


def prompts_here(files: tuple[Path, Path]) -> None:
    write_jsonl(files[0], [{"prompt": f"put {i} eggs", "answer": str(i)} for i in range(10)])
    write_jsonl(files[1], [{"prompt": f"put {i} tens", "answer": str(i)} for i in range(8)])


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_was_killed_goes_on_where_it_was(
    point: str,
    tiny: Path,
    living: LivingPolicy,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = (unbroken.parent / "train.jsonl", unbroken.parent / "eval.jsonl")
    settings = settings_for(
        tiny, (str(files[0]), str(files[1])), living.server.target, tmp_path / "run", epochs=4.0
    )
    with monkeypatch.context() as patch:
        POINTS[point](patch)
        with pytest.raises((Killed, KeyboardInterrupt)):
            run(settings)
    assert not (tmp_path / "run" / "summary.json").exists()
    scored = tmp_path / "run" / "scored.jsonl"
    had = read_rows(scored)[1:] if scored.exists() else []
    summary, _ = run(settings, resume=True)

    # No group that was there is sampled again, and every prompt is there once.
    now = read_rows(scored)[1:]
    assert now[: len(had)] == had
    assert sorted(row["task"] for row in now) == list(range(10))
    # As if nothing had happened: the same samples, losses, weights and measures.
    for name, value in final_weights(unbroken).items():
        assert torch.equal(value, final_weights(tmp_path / "run")[name]), name
    expected = json.loads((unbroken / "summary.json").read_text())
    for key in ("before", "after", "difference", "kept", "steps", "tokens", "completions"):
        assert summary[key] == expected[key], key

    def timeless(path: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(path)]

    for name in ("metrics.jsonl", "samples.jsonl"):
        assert timeless(tmp_path / "run" / name) == timeless(unbroken / name)


def test_lora_is_merged_before_it_is_published(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    settings = settings_for(
        tiny, prompts, living.server.target, tmp_path / "run", lora_r=4, steps=6, lr=1e-2
    )
    summary, _ = run(settings)
    assert summary["steps"] == 6
    first, last = load_file(tiny / "model.safetensors"), final_weights(tmp_path / "run")
    assert first.keys() == last.keys() == living.weights().keys()
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved
    assert all("proj" in name for name in moved)
    for name, value in living.weights().items():
        assert torch.equal(value, last[name]), name


def test_more_steps_go_on_with_a_finished_run(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"lora_r": 0}
    run(settings_for(tiny, prompts, living.server.target, tmp_path / "run", steps=4, **more))
    longer = settings_for(tiny, prompts, living.server.target, tmp_path / "run", steps=8, **more)
    assert not RLFolder(longer, resume=True).finished
    summary, printed = run(longer, resume=True)
    assert "resuming fine-tuning at step 4" in printed
    assert summary["steps"] == summary["after"]["step"] == 8
    assert RLFolder(longer, resume=True).finished
    after = [r for r in read_rows(tmp_path / "run" / "samples.jsonl") if r["kind"] == "after"]
    assert {row["step"] for row in after} == {8}


def test_nothing_kept_ends_the_run_with_the_reason(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    settings = settings_for(
        tiny, prompts, living.server.target, tmp_path / "run", verifier=("exact",), threshold=1.5
    )
    says = r"no completion was kept: the best reward is [01] and .*; 80 of 80 were cut"
    with pytest.raises(DataError, match=says):
        run(settings)


def test_served_rewards_and_a_held_out_one(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    def vowels(prompt: Any, response: Any) -> float:
        return sum(letter in "aeiou" for letter in response)

    with FakeRewardServer(vowels) as rewards:
        address = f"{rewards.target}/fake"
        settings = settings_for(
            tiny,
            prompts,
            living.server.target,
            tmp_path / "run",
            verifier=(),
            steps=8,
            reward=(f"0.5*{address}",),
            heldout_reward=(f"2*{address}",),
            keep="top",
            top=2,
        )
        summary, _ = run(settings)
    assert summary["kept"] == 20
    for when in ("before", "after"):
        found = summary[when]
        assert found["heldout_reward"]["mean"] == pytest.approx(4 * found["reward"]["mean"])


def test_a_sampler_that_comes_back_is_given_its_weights_again(
    tiny: Path,
    prompts: tuple[str, str],
    living: LivingPolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = Drawing.sample

    async def broken(self: Drawing, *args: Any, stream: int, **how: Any) -> list[Group]:
        if stream == rft._DRAWN:
            restarts.append(asyncio.ensure_future(asyncio.to_thread(restart_when_it_draws)))
        return await draw(self, *args, stream=stream, **how)

    def restart_when_it_draws() -> None:
        while not living.server._state.running:
            time.sleep(0.005)
        run_there(living.server.restart())

    restarts: list[Any] = []
    monkeypatch.setattr(Drawing, "sample", broken)
    living.server._delay = (0.3, 0.4)
    settings = settings_for(
        tiny, prompts, living.server.target, tmp_path / "run", steps=2, patience=30.0
    )
    summary, _ = run(settings)
    assert len(restarts) == 1
    assert [u.version for u in living.server.updates].count(1) >= 2
    assert summary["faults"]["sampler_restarts"] == 1
    assert sorted(r["task"] for r in read_rows(tmp_path / "run" / "scored.jsonl")[1:]) == list(
        range(10)
    )


def test_a_sampler_that_stays_away_ends_the_run_and_it_can_go_on(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    away = settings_for(tiny, prompts, "127.0.0.1:9", tmp_path / "run", steps=2, patience=0.5)
    with pytest.raises(TrainingError, match=r"the sampler at 127\.0\.0\.1:9 gave no answer"):
        run(away)
    here = settings_for(tiny, prompts, living.server.target, tmp_path / "run", steps=2)
    assert run(here, resume=True)[0]["steps"] == 2


def test_refused_weights_end_the_run(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    living.server.fail(
        grpc.StatusCode.FAILED_PRECONDITION, "the canaries part", times=9, method="UpdateWeights"
    )
    settings = settings_for(tiny, prompts, living.server.target, tmp_path / "run")
    with pytest.raises(TrainingError, match="refuses version 1 of the weights: the canaries part"):
        run(settings)


def test_several_processes_are_refused(
    tiny: Path, prompts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = settings_for(tiny, prompts, "127.0.0.1:9", tmp_path / "run")
    with pytest.raises(TrainingError, match="one process"):
        run(settings)
    assert not (tmp_path / "run").exists()


def test_another_dtype_than_the_samplers_is_refused(
    tiny: Path, prompts: tuple[str, str], living: LivingPolicy, tmp_path: Path
) -> None:
    settings = settings_for(
        tiny, prompts, living.server.target, tmp_path / "run", publish_dtype="bfloat16"
    )
    with pytest.raises(SettingsError, match="bfloat16, but the sampler computes in float32"):
        run(settings)


@pytest.mark.slow
def test_kill_9_while_sampling_and_while_fine_tuning(
    tiny: Path,
    prompts: tuple[str, str],
    living: LivingPolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "run"
    drawn, whole = [0], living.server.wait

    async def wait() -> None:
        """The sampler stands still after the first evaluation and five groups, until a kill."""
        drawn[0] += 1
        while drawn[0] > 16 + 45 and not killed:  # noqa: ASYNC110 - told by another thread
            await asyncio.sleep(0.01)
        await whole()

    monkeypatch.setattr(living.server, "wait", wait)
    killed: list[bool] = []
    command = [
        "rft",
        "--policy",
        str(tiny),
        "--sampler",
        living.server.target,
        "--prompts",
        prompts[0],
        "--eval-prompts",
        prompts[1],
        "--output",
        str(output),
        "--verifier",
        "regex:[ae]",
        "--max-tokens",
        str(TOKENS),
        "--dtype",
        "float32",
        "--checkpoint-every",
        "5",
        "--steps",
        "15",
        "--no-plots",
        "--eval-samples",
        "2",
        "--batch-size",
        "4",
        "--keep-cut",
    ]

    def start(name: str, *more: str, dies: str = "") -> Child:
        return Child(tmp_path / name, train, [*command, *more], dies)

    sampling = start("sampling")
    scored = output / "scored.jsonl"
    while not scored.exists() or len(scored.read_bytes().splitlines()) < 4:
        assert sampling.running, sampling.log()
        time.sleep(0.005)
    sampling.kill()
    killed.append(True)
    had = read_rows(scored)[1:]
    assert 3 <= len(had) <= 5
    tuning = start("tuning", "--resume", dies="after-checkpoint:1")
    tuning.wait()
    assert tuning.killed, tuning.log()
    assert not (output / "final").exists()
    assert read_rows(scored)[1 : len(had) + 1] == had
    ended = start("ended", "--resume")
    assert ended.wait() == 0, ended.log()
    assert "resuming fine-tuning at step 5" in ended.log()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 15
    rows = read_rows(output / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 16))
    assert sorted(row["task"] for row in read_rows(scored)[1:]) == list(range(10))
    again = start("again", "--resume")
    assert again.wait() == 0
    assert "this run ended already" in again.log()
