"""Settings of the recipes from files and the command line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.recipes.support import KINDS, NEEDED, REWARD, settings_of
from typer.testing import CliRunner

from guerdon.cli.main import main
from guerdon.cli.settings_options import field_docs
from guerdon.settings import build, field_types, load, to_toml
from guerdon.trainer.cli import app
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.rl import cli
from guerdon.trainer.rl.settings import PPOSettings, RFTSettings, RunSettings

ARGUMENTS = [
    "--policy", "m", "--sampler", "localhost:1", "--prompts", "p.jsonl",
    "--eval-prompts", "e.jsonl", "--output", "o",
]  # fmt: skip


ONLINE_DPO, PPO, RFT = (
    [name, *ARGUMENTS, "--verifier", "exact"] for name in ("online-dpo", "ppo", "rft")
)
DPO = ["dpo", "--policy", "m", "--train", "t.jsonl", "--eval", "e.jsonl", "--output", "o"]


def settings_from(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    """What a command line makes of its options."""
    found: list[RunSettings] = []
    monkeypatch.setattr(cli, "_run", lambda settings, **_: found.append(settings))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return found[0]


# --- options ---


@pytest.mark.parametrize("kind", KINDS)
def test_help_teaches_every_setting(kind: type[RunSettings]) -> None:
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(
        app, [kind.algorithm, "--help"]
    )
    assert result.exit_code == 0
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.output).split())
    for name in field_types(kind):
        assert f"--{name.replace('_', '-')}" in shown, name
    words = set(shown.split())
    for name, text in field_docs(kind).items():
        assert set(text.split()) <= words, name


def test_every_setting_is_explained() -> None:
    for kind in KINDS:
        assert set(field_types(kind)) == set(field_docs(kind))
        assert all(text.endswith((".", ")", "own")) for text in field_docs(kind).values())


def test_every_setting_has_a_panel() -> None:
    names = [name for names in cli.PANELS.values() for name in names]
    assert len(names) == len(set(names))
    assert set(names) == {name for kind in KINDS for name in field_types(kind)}


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings_from(
        [
            "ppo",
            *ARGUMENTS,
            "--reward",
            "2*a:1/x",
            "--reward",
            "b:2/y",
            "--verifier",
            "exact",
            "--no-whiten",
            "--kl-in",
            "loss",
            "--lr",
            "1e-6",
            "--steps",
            "7",
        ],
        monkeypatch,
    )
    assert found == PPOSettings(
        **NEEDED,
        reward=("2*a:1/x", "b:2/y"),
        verifier=("exact",),
        whiten=False,
        kl_in="loss",
        lr=1e-6,
        steps=7,
    )


def test_the_command_line_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('sampler = "file:1"\nsteps = 3\nlr = 1\nreward = ["a:1/x"]\nplots = false\n')
    found = settings_from(
        ["grpo", "--config", str(path), *ARGUMENTS, "--reward", "b:2/y", "--no-deterministic"],
        monkeypatch,
    )
    assert (found.sampler, found.steps, found.lr, found.reward, found.plots) == (
        "localhost:1",
        3,
        1.0,
        ("b:2/y",),
        False,
    )


# --- files ---


def values(kind: type[RunSettings]) -> st.SearchStrategy[dict[str, Any]]:
    """Any values of the right types; the class itself may refuse some."""
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
    of: dict[Any, Any] = {
        str: text,
        int: st.integers(0, 2**62),
        float: st.floats(0, 1e300, allow_nan=False),
        float | None: st.none() | st.floats(0, 1e300, allow_nan=False),
        bool: st.booleans(),
        tuple[str, ...]: st.lists(text, max_size=3).map(tuple),
    }

    def one(hint: Any) -> Any:
        if typing.get_origin(hint) is typing.Literal:
            return st.sampled_from(typing.get_args(hint))
        return of[hint]

    return st.fixed_dictionaries({name: one(hint) for name, hint in field_types(kind).items()})


@settings(suppress_health_check=[HealthCheck.too_slow])  # other tests share the cores
@given(st.data())
def test_toml_round_trip(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    chosen = data.draw(values(kind))
    try:
        settings = kind(**chosen)
    except SettingsError:
        return
    import tomllib

    assert build(kind, tomllib.loads(to_toml(settings))) == settings


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_round_trip(kind: type[RunSettings], tmp_path: Path) -> None:
    settings = settings_of(kind)
    (tmp_path / "c.toml").write_text(to_toml(settings), encoding="utf-8")
    assert load(kind, tmp_path / "c.toml", {}) == settings
    lines = to_toml(settings).splitlines()
    given_ = [f.name for f in dataclasses.fields(kind) if getattr(settings, f.name) is not None]
    assert [line.split(" = ")[0] for line in lines] == given_


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "unknown setting 'learning_rate'"),
        ("max_stalenes = 1", "unknown setting 'max_stalenes'; did you mean 'max_staleness'?"),
        ("scale_by_std = true", "unknown setting 'scale_by_std'"),  # GRPO's, not PPO's
        ('steps = "two"', "steps is 'two', it must be of type int"),
        ("steps = 1.5", "steps is 1.5, it must be of type int"),
        ("whiten = 1", "whiten is 1, it must be of type bool"),
        ("seed = true", "seed is True, it must be of type int"),
        ('reward = "a:1/x"', "reward is 'a:1/x', it must be a list"),
        ("reward = [1]", "reward[0] is 1, it must be of type str"),
        ('dtype = "float16"', "dtype is 'float16', it must be one of auto, bfloat16, float32"),
        ("lr = 0", "lr is 0.0, it must be positive"),
        ("temperature = nan", "temperature is nan, it must be a number"),
        (f"lr = 1{'0' * 400}", "lr is too large"),
        ("deterministic = true\nmax_staleness = 1", "deterministic needs max_staleness = 0"),
        ("reward = []", "nothing gives rewards: set reward or verifier"),
        ('policy = ""', "policy is missing: give --policy"),
        ("steps =", "is not valid TOML"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    given_ = {k: v for k, v in {**NEEDED, "reward": REWARD}.items() if f"{k} =" not in text}
    with pytest.raises(SettingsError) as caught:
        load(PPOSettings, path, given_)
    assert message in str(caught.value)


def test_keys_that_a_recipe_never_used_are_read_from_older_settings_files(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(to_toml(settings_of(RFTSettings)) + 'reward_scale = "none"\neval_every = 10\n')
    assert load(RFTSettings, path, {}) == settings_of(RFTSettings)
    path.write_text(to_toml(settings_of(RFTSettings)) + "eval_every = 5\n")
    with pytest.raises(SettingsError, match="unknown setting 'eval_every': it does nothing for"):
        load(RFTSettings, path, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppo", *ARGUMENTS], "nothing gives rewards: set reward or verifier"),
        (["ppo", *ARGUMENTS[2:], "--reward", "a:1/x"], "policy is missing: give --policy"),
        (["grpo", *ARGUMENTS, "--reward", "a:1/x", "--kl-in", "reward"], "No such option: --kl-in"),
        (["ppo", *ARGUMENTS, "--value", "none"], "'none' is not one of 'head', 'own'"),
        (["ppo", *ARGUMENTS, "--no-such"], "No such option: --no-such"),
        (["rft", *ARGUMENTS, "--verifier", "exact", "--tracker", "x"], "tracker is 'x', not"),
        ([*ONLINE_DPO, "--samples-per-prompt", "1"], "must be at least 2: a pair has two answers"),
        ([*ONLINE_DPO, "--beta", "0"], "beta is 0.0, it must be positive"),
        ([*ONLINE_DPO, "--loss", "kto"], "'kto' is not one of 'sigmoid', 'ipo', 'hinge'"),
        ([*ONLINE_DPO, "--max-per-prompt", "3"], "max_per_prompt is for pick = all only"),
        ([*ONLINE_DPO, "--missing-eos-penalty", "1"], "make no pair: set unfinished"),
        ([*ONLINE_DPO, "--reward-clip", "1"], "No such option: --reward-clip"),
        ([*ONLINE_DPO, "--lora-alpha", "8"], "lora_alpha does nothing without lora_r"),
        ([*ONLINE_DPO, "--shared-dir", "d"], "shared_dir does nothing without publish = shared"),
        ([*PPO, "--kl-coef", "0", "--kl-target", "1"], "kl_target does nothing where kl_coef is 0"),
        ([*PPO, "--kl-horizon", "9"], "kl_horizon does nothing without kl_target"),
        ([*RFT, "--max-staleness", "1"], "No such option: --max-staleness"),
        ([*RFT, "--keep", "top", "--threshold", "0"], "threshold does nothing without keep ="),
        ([*RFT, "--steps", "3", "--epochs", "1"], "epochs does nothing where steps is given"),
        ([*DPO, "--lora-dropout", "0.1"], "lora_dropout does nothing without lora_r"),
        ([*DPO, "--checkpoint-every", "0", "--keep-checkpoints"], "keep_checkpoints does nothing"),
        (["reward", *DPO[3:], "--base", "m", "--lora-alpha", "8"], "lora_alpha does nothing"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    printed = capfd.readouterr().err
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 2


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, guerdon.trainer.cli\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'matplotlib', 'peft', 'grpc'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
