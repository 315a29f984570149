"""The helpers of `make demo`; the demo itself is run as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deploy.demo import policy, processes, reward
from deploy.demo.console import ROOT, DemoFailed, clip, minutes, relative, shorten

from guerdon.data import read_jsonl
from guerdon.settings import field_types, typed
from guerdon.trainer.common.data.rows import PROJECT_DATA
from guerdon.trainer.common.services.prompts import parse_row
from guerdon.trainer.rl.settings import PPOSettings


def estimate(mean: float, se: float | None = 0.05, n: int = 50) -> dict[str, Any]:
    low, high = (None, None) if se is None else (mean - 2 * se, mean + 2 * se)
    return {"mean": mean, "se": se, "low": low, "high": high, "n": n}


def summary(rose: bool = True, **after: Any) -> dict[str, Any]:
    return {
        "before": {"reward": estimate(0.1), "length": estimate(40.0)},
        "after": {"reward": estimate(0.6), "length": estimate(40.0), **after},
        "difference": {"reward": estimate(0.5)},
        "reward_rose": rose,
        "steps": 12,
    }


def test_the_verdict_says_what_rose_and_how_noisy_it_is() -> None:
    assert policy.verdict(summary(kl=estimate(8.0))) == (
        "The mean reward of 50 held-out prompts rose beyond its noise: from +0.100 ± 0.050 to "
        "+0.600 ± 0.050, by +0.500 (95 %: +0.400 to +0.600). KL to the first policy: 8.00 nats "
        "per completion, 0.200 per token. It took 12 steps."
    )
    assert "did not rise beyond its noise" in policy.verdict(summary(rose=False))
    assert "KL" not in policy.verdict(summary())
    assert policy.mean(estimate(0.25, None)) == "+0.250"


def test_a_run_is_finished_when_summary_and_policy_are_there(tmp_path: Path) -> None:
    assert not policy.finished(tmp_path)
    (tmp_path / "final").mkdir()
    assert not policy.finished(tmp_path)
    with pytest.raises(DemoFailed, match=r"summary\.json can't be read"):
        policy.show(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    assert policy.finished(tmp_path)
    assert policy.plots(tmp_path) == "none"
    (tmp_path / "plots").mkdir()
    for name in ("reward", "kl", "time"):
        (tmp_path / "plots" / f"{name}.png").touch()
    assert policy.plots(tmp_path) == f"{tmp_path}/plots/reward.png, and 2 others beside it"
    policy.show(tmp_path)
    policy.clear(tmp_path)
    policy.clear(tmp_path)
    assert not tmp_path.exists()


def commands(monkeypatch: pytest.MonkeyPatch, code: int = 0) -> list[list[str]]:
    """What `guerdon` is called with, instead of calling it."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_ppo_is_started_with_settings_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = commands(monkeypatch)
    policy.train(tmp_path / "run", "127.0.0.1:1", "127.0.0.1:2/helpful", seed=3)
    command = seen[0]
    assert command[0].endswith("/guerdon")
    assert command[1:3] == ["train", "ppo"]
    types = field_types(PPOSettings)
    values: dict[str, Any] = {}
    for option, value in zip(command[3::2], command[4::2], strict=True):
        name = option.removeprefix("--").replace("-", "_")
        assert name in types, option
        values[name] = value
    for name, value in policy.SETTINGS.items():
        key = name.replace("-", "_")
        values[key] = typed(key, value, types[key])
    values["reward"] = (values["reward"],)
    values["seed"] = int(values["seed"])
    assert PPOSettings(**values).reward == ("127.0.0.1:2/helpful",)
    for key in ("prompts", "eval_prompts"):
        assert [parse_row(row, line) for line, row in read_jsonl(PROJECT_DATA[values[key]])]


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = commands(monkeypatch)
    (tmp_path / "run").mkdir()
    policy.train(tmp_path / "run", "s:1", "r:2/m", seed=0)
    assert seen[0][-1] == "--resume"
    reward.train(tmp_path / "run", fresh=False)
    assert seen[1][-1] == "--resume"
    reward.train(tmp_path / "run", fresh=True)
    assert "--resume" not in seen[2]


def test_a_command_that_fails_ends_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(monkeypatch, code=1)
    with pytest.raises(DemoFailed, match="PPO failed"):
        policy.train(tmp_path / "run", "s:1", "r:2/m", seed=0)


def test_a_server_that_does_not_start_is_told_of(tmp_path: Path) -> None:
    with (
        pytest.raises(DemoFailed, match="the server did not start"),
        processes.serving(["no-such-server"], tmp_path / "log"),
    ):
        pytest.fail("it started")


SERVER = """
import json, pathlib, signal, sys, time
ready = sys.argv[sys.argv.index("--ready-file") + 1]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[2].partition("=")[2])))
pathlib.Path(ready).write_text(json.dumps({"port": 5, "http_port": 6}))
time.sleep(60)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_server_is_stopped_and_its_exit_code_looked_at(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "guerdon"
    program.write_text(f"#!{sys.executable}\n{SERVER}")
    program.chmod(0o755)
    monkeypatch.setattr(processes, "GUERDON", program)

    def serve() -> processes.Served:
        with processes.serving([f"leave={code}"], tmp_path / "log") as served:
            return served

    if code == 0:
        assert serve() == processes.Served("127.0.0.1:5", "http://127.0.0.1:6")
    else:
        with pytest.raises(DemoFailed, match="exit code 3"):
            serve()


def test_held_out_groups_hold_every_judged_pair() -> None:
    groups = reward.held_out()
    pairs = [row for _, row in read_jsonl(reward.DATA / "eval.jsonl")]
    assert sum(len(group.judged) for group in groups) == len(pairs)
    for group in groups:
        assert len(set(group.answers)) == len(group.answers)


def test_paths_and_texts_are_made_short() -> None:
    assert relative(ROOT / "a" / "b") == "a/b"
    assert relative(Path("/elsewhere")) == "/elsewhere"
    assert shorten(str(ROOT / "x")) == "x"
    assert shorten(f"helpful={ROOT / 'x'}") == "helpful=x"
    assert shorten("--seed") == "--seed"
    assert (minutes(40), minutes(95)) == ("40 s", "1.6 min")
    assert clip("a\n b  c", 10) == "a b c"
    assert clip("abcdef", 4) == "abc…"
