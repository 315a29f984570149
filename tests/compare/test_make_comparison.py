"""The helpers of `make comparison`; the comparison itself is run as a whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deploy.comparison import __main__ as comparison
from deploy.comparison.budgets import BUDGETS
from deploy.comparison.split_pairs import key, split_pairs, write_halves
from deploy.comparison.stages import RUNS, Plan, Stage
from deploy.demo import processes
from deploy.demo.console import DemoFailed
from deploy.demo.reward import DATA
from tests.support.command import read_rows

from guerdon.settings import build, field_types
from guerdon.trainer.common.data.rows import PROJECT_DATA
from guerdon.trainer.evaluate.policy.settings import EvalSettings
from guerdon.trainer.fine_tune.settings import DPOSettings, ORPOSettings, SFTSettings
from guerdon.trainer.reward.settings import RewardSettings
from guerdon.trainer.rl.settings import PPOSettings, RFTSettings

KINDS: dict[tuple[str, ...], type[Any]] = {
    ("train", "reward"): RewardSettings,
    ("train", "sft"): SFTSettings,
    ("train", "dpo"): DPOSettings,
    ("train", "orpo"): ORPOSettings,
    ("train", "rft"): RFTSettings,
    ("train", "ppo"): PPOSettings,
    ("eval", "policy"): EvalSettings,
}


def test_the_halves_share_no_prompt_and_leave_nothing_out(tmp_path: Path) -> None:
    rows = read_rows(DATA / "train.jsonl")
    first, second = split_pairs(rows)
    assert sorted(map(json.dumps, first + second)) == sorted(map(json.dumps, rows))
    assert not {key(row) for row in first} & {key(row) for row in second}
    assert {row["category"] for row in first} == {row["category"] for row in second}
    assert abs(len(first) - len(second)) < 0.1 * len(rows)
    held_out = {key(row) for row in read_rows(DATA / "eval.jsonl")}
    assert not held_out & {key(row) for row in rows}
    asked = {row["prompt"] for row in read_rows(PROJECT_DATA["questions-eval"])}
    assert not asked & {row["prompt"][-1]["content"] for row in rows}
    paths = write_halves(DATA / "train.jsonl", tmp_path)
    assert [read_rows(path) for path in paths] == [first, second]


def plan(output: Path, budget: str = "small") -> Plan:
    return Plan(output, BUDGETS[budget], write_halves(DATA / "train.jsonl", output / "data"), 3)


def settings_of(stage: Stage) -> Any:
    """The settings that a stage's command resolves to."""
    kind = KINDS[stage.command[:2]]
    types = field_types(kind)
    values: dict[str, Any] = {}
    for option, word in zip(stage.command[2::2], stage.command[3::2], strict=True):
        name = option.removeprefix("--").replace("-", "_")
        assert name in types, f"{option} of {kind.__name__}"
        text = str(types[name])
        value: Any = word
        if "float" in text:
            value = float(word)
        elif "int" in text:
            value = int(word)
        values[name] = (value,) if "tuple" in text else value
    return build(kind, values)


@pytest.mark.parametrize("budget", sorted(BUDGETS))
def test_every_stage_has_settings_that_exist_and_measures_alike(
    budget: str, tmp_path: Path
) -> None:
    made = plan(tmp_path, budget)
    stages = [*made.on_files(), *made.with_services("127.0.0.1:1", "127.0.0.1:2")]
    given = [settings_of(stage) for stage in stages]
    assert len({stage.folder for stage in stages}) == len(stages)
    rewards = [s for s in given if isinstance(s, RewardSettings)]
    assert len({s.train for s in rewards}) == len({s.seed for s in rewards}) == 2
    aligned = [s for s in given if isinstance(s, SFTSettings | DPOSettings | ORPOSettings)]
    assert {s.train for s in aligned} == {rewards[0].train}  # the held-out half is for one only
    reinforced = [s for s in given if isinstance(s, RFTSettings | PPOSettings)]
    evaluated = [s for s in given if isinstance(s, EvalSettings)]
    assert [s.policy for s in evaluated[1:]] == [str(tmp_path / run / "final") for run in RUNS]
    assert {s.baseline for s in evaluated} == {"", evaluated[0].output}
    trained = [*aligned, *reinforced]
    assert {s.policy for s in trained} == {evaluated[0].policy} == {evaluated[0].reference}
    # So a curve while it trained is on the axes of the evaluations.
    for same in ("max_tokens", "temperature", "reward", "heldout_reward"):
        assert len({getattr(s, same) for s in [*reinforced, *evaluated]}) == 1, same
    assert {s.eval_prompts for s in reinforced} == {s.prompts for s in evaluated}
    if budget == "small":
        assert {s.eval_limit for s in reinforced} == {s.limit for s in evaluated} == {0}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run, in order, instead of running it; every command leaves what it should."""
    found: list[str] = []

    def run(command: tuple[str, ...], *_: object) -> None:
        found.append(" ".join(command))
        if "--output" in command and command[0] != "compare":
            folder = Path(command[command.index("--output") + 1])
            (folder / "final").mkdir(parents=True, exist_ok=True)
            for name in ("guerdon.json", "model.safetensors", "summary.json", "evaluation.json"):
                (folder / name).touch()

    @contextmanager
    def serving(command: list[str], log: Path) -> Iterator[processes.Served]:
        found.append(f"serve {command[0]}")
        yield processes.Served(f"127.0.0.1:{len(found)}", "http://127.0.0.1:1")

    monkeypatch.setattr(comparison, "run", run)
    monkeypatch.setattr(comparison, "run_logged", run)
    monkeypatch.setattr(comparison, "serving", serving)
    return found


def test_what_is_done_is_not_done_again(tmp_path: Path, started: list[str]) -> None:
    comparison.compare(plan(tmp_path))
    words = [" ".join(command.split()[:2]) for command in started]
    assert words == [
        "train reward",
        "train reward",
        "train sft",
        "train dpo",
        "train orpo",
        "serve reward",
        "serve sampler",
        "eval policy",
        "train rft",
        "train ppo",
        *["eval policy"] * 5,
        f"compare {tmp_path}/start",
    ]
    started.clear()
    comparison.compare(plan(tmp_path))
    assert [command.split()[0] for command in started] == ["compare"]  # and no server
    started.clear()
    (tmp_path / "ppo" / "summary.json").unlink()
    (tmp_path / "ppo" / "config.toml").touch()
    comparison.compare(plan(tmp_path))
    assert [command.split()[:2] for command in started[:3]] == [
        ["serve", "reward"],
        ["serve", "sampler"],
        ["train", "ppo"],
    ]
    assert started[2].endswith("--resume")
    assert len(started) == 4


def test_another_seed_is_another_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is done for one seed is not shown as another's."""
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    monkeypatch.setattr(comparison, "compare", lambda p: made.append((p.output.name, p.seed)))

    def ask(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["make comparison", *words])
        comparison.main()

    ask()
    ask("--seed", "1")
    ask("--budget", "tiny")
    ask()
    assert made == [
        ("comparison-small", 0),
        ("comparison-small-seed-1", 1),
        ("comparison-tiny", 0),
        ("comparison-small", 0),
    ]
    with pytest.raises(SystemExit):
        ask("--seed", "2", "--output", str(tmp_path / "runs" / "comparison-small"))
    assert "with budget small and seed 0: give another --output" in " ".join(
        capsys.readouterr().out.split()
    )
    assert len(made) == 4


def test_a_stage_that_leaves_nothing_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "run_logged", lambda *_: None)
    with pytest.raises(DemoFailed, match="reward-proxy is not whole"):
        comparison.compare(plan(tmp_path))


@pytest.fixture
def guerdon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in place of the command."""

    def put(source: str) -> None:
        program = tmp_path / "guerdon"
        program.write_text(f"#!{sys.executable}\n{source}", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setattr(processes, "GUERDON", program)

    return put


def test_a_command_s_words_go_to_its_log(tmp_path: Path, guerdon: Callable[[str], None]) -> None:
    log = tmp_path / "logs" / "x.log"
    guerdon("print('one'); print('two')")
    processes.run_logged(("train", "x"), log)
    guerdon("import sys\nprint('progress', end='\\r')\nsys.exit('guerdon: it broke')")
    with pytest.raises(DemoFailed, match="guerdon: it broke"):
        processes.run_logged(("train", "x"), log)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines[1:3] == ["one", "two"]
    assert sum(line.endswith("train x") for line in lines) == 2
    log.write_text("", encoding="utf-8")
    assert processes.last_line(log) == ""


def test_sigterm_stops_what_was_started(tmp_path: Path) -> None:
    """A command that would run on for a minute is stopped before the process leaves."""
    ended, began = tmp_path / "ended", tmp_path / "began"
    program = tmp_path / "guerdon"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, signal, sys, time\n"
        f"def end(*_): pathlib.Path({str(ended)!r}).touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(began)!r}).touch()\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    code = (
        "from pathlib import Path\nfrom deploy.demo import processes\n"
        f"processes.GUERDON = Path({str(program)!r})\nprocesses.leave_on_sigterm()\n"
        f"processes.run_logged(('train', 'x'), Path({str(tmp_path / 'log')!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        while not began.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert ended.exists()
