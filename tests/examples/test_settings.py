"""The settings files of examples/ are ones that the programs take, what is commented out too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.tiny import tiny_checkpoint

from guerdon.cli.main import main
from guerdon.reward.config import load_config
from guerdon.settings import load
from guerdon.trainer.rl.settings import PPOSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def with_every_key(file: Path, folder: Path) -> Path:
    """The same file with what is commented out."""
    text, count = re.subn(r"^#(?=\w+ = )", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count > 3
    copy = folder / file.name
    copy.write_text(text, encoding="utf-8")
    return copy


def test_the_reward_servers(tmp_path: Path) -> None:
    config = load_config(EXAMPLES / "serve.toml", {})
    assert (config.port, config.models, config.lame_duck) == (50051, {"helpful": "runs/helpful"}, 5)
    whole = load_config(with_every_key(EXAMPLES / "serve.toml", tmp_path), {})
    assert (whole.engine, whole.batching, whole.limits) == (
        config.engine.__class__(threads=8),
        config.batching,
        config.limits,
    )
    assert whole.queue == config.queue  # what it calls a default is one


def test_a_ppo_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    policy = tiny_checkpoint(tmp_path / "policy", "llama", causal_lm=True, max_positions=512)
    for file in (EXAMPLES / "ppo.toml", with_every_key(EXAMPLES / "ppo.toml", tmp_path)):
        assert load(PPOSettings, file, {}).steps == 12
        line = ["train", "ppo", "--config", str(file), "--policy", str(policy), "--dry-run"]
        assert main(line) == 0, capfd.readouterr().err
        assert "prompts: 150 of" in capfd.readouterr().err
