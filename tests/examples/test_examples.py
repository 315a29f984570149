"""Every program of examples/ runs as it stands, against real servers on tiny models."""

from __future__ import annotations

import json
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runs.processes import reward_service, sampler_service
from tests.support.command import environment, read_rows, write_jsonl
from tests.support.tiny import tiny_checkpoint

from guerdon.client import GenerateItem, Item, PolicyClient, RewardClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def run_example(name: str, *arguments: object) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with two layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("examples") / "policy", "llama", causal_lm=True)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a reward server."""
    folder = tmp_path_factory.mktemp("rewards")
    with reward_service(folder, helpful=tiny_checkpoint(folder / "m", "llama", seed=5)) as service:
        yield f"localhost:{service.port}"


@pytest.fixture(scope="module")
def sampler(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a sampler."""
    with sampler_service(tmp_path_factory.mktemp("sampler"), policy) as service:
        yield f"localhost:{service.port}"


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.stem for program in PROGRAMS])
def test_it_says_what_it_takes(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(program), run_name="__main__")
    assert "--rewards" in capsys.readouterr().out


def drawn(sampler: str) -> np.ndarray:
    """Log-probabilities of a seeded draw under the sampler's weights."""
    with PolicyClient(sampler) as client:
        (completion,) = client.generate([GenerateItem("Hi", seed=1)], max_tokens=8, ignore_eos=True)
    return completion.logprobs


@pytest.mark.slow
def test_the_rl_loop_learns_and_publishes(
    policy: Path, sampler: str, rewards: str, tmp_path: Path
) -> None:
    before = drawn(sampler)
    command = ["--policy", policy, "--sampler", sampler, "--rewards", rewards, "--steps", 3]
    command += ["--prompts-per-step", 2, "--group", 4, "--max-tokens", 8, "--lr", 1e-2]
    printed = run_example("rl_loop.py", *command, "--output", tmp_path / "trained")
    found = re.findall(r"step (\d): reward (\S+), clipped (\S+)%", printed)
    assert [int(step) for step, _, _ in found] == [1, 2, 3]
    assert all(math.isfinite(float(reward)) for _, reward, _ in found)
    with PolicyClient(sampler) as client:
        assert client.get_policy().weight_version == 4  # its own weights are the first
    assert not np.allclose(drawn(sampler), before, atol=1e-3)
    assert (tmp_path / "trained" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_best_of_n_is_the_best(sampler: str, rewards: str) -> None:
    more = ["-n", 4, "--max-tokens", 6, "--seed", 3, "--temperature", 1.0]
    printed = run_example(
        "best_of_n.py", "What is rain?", "--sampler", sampler, "--rewards", rewards, *more
    )
    score, _, answer = printed.partition("\t")
    with PolicyClient(sampler) as client, RewardClient(rewards) as judge:
        item = GenerateItem("What is rain?", n=4, seed=3)
        completions = client.generate([item], max_tokens=6, return_text=True)
        texts = [c.text for c in completions if c.finished] or [c.text for c in completions]
        scores = judge.score_one("helpful", "What is rain?", texts).values
    assert float(score) == pytest.approx(max(scores), abs=1e-3)
    assert answer.removesuffix("\n") == texts[scores.index(max(scores))]


@pytest.mark.slow
def test_a_data_set_is_filtered_whole_and_in_order(rewards: str, tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": f"answer {i * 7919}"},
            ],
            "id": i,
        }
        for i in range(40)
    ]
    source, output = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with RewardClient(rewards) as judge:
        items = [Item(row["messages"][:1], [row["messages"][1]["content"]]) for row in rows]
        scores = [score for (score,) in judge.score("helpful", items).scores]
    threshold = sorted(scores)[20] - 1e-3
    command = [source, output, "--threshold", threshold, "--rewards", rewards, "--in-flight", 4]
    printed = run_example("filter_dataset.py", *command)
    kept = [row["id"] for row in read_rows(output)]
    assert kept == [i for i, score in enumerate(scores) if score >= threshold]
    assert printed == f"kept {len(kept)} of 40 rows\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.slow
def test_a_loop_of_ones_own_gets_rewards(policy: Path, rewards: str, tmp_path: Path) -> None:
    command = ["--policy", policy, "--rewards", rewards, "--steps", 2, "--samples", 3]
    command += ["--max-tokens", 6, "--output", tmp_path / "trained"]
    printed = run_example("custom_training_job.py", *command)
    found = re.findall(r"step (\d): reward (\S+)", printed)
    assert [int(step) for step, _ in found] == [1, 2]
    assert all(math.isfinite(float(reward)) for _, reward in found)
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["model_type"] == "llama"
