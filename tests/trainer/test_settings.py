"""Settings from a file and the command line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from tests.trainer.toy import write_rows, write_toy

from guerdon.cli.main import main
from guerdon.settings import to_toml
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.report import show_groups
from guerdon.trainer.reward.settings import AllSettings, RewardSettings, load_settings

NEEDED = {"base": "b", "train": "t", "eval": "e", "output": "o"}


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('base = "file"\nlr = 1\nepochs = 2\nplots = false\n')
    found = load_settings(path, {**NEEDED, "base": None, "epochs": 3.0, "seed": None})
    assert (found.base, found.lr, found.epochs, found.plots, found.seed) == (
        "file",
        1.0,
        3.0,
        False,
        0,
    )


def test_toml_round_trip(tmp_path: Path) -> None:
    settings = RewardSettings(**{**NEEDED, "train": 'a "b" \\ c.jsonl'}, lora_r=4, lr=3e-5)
    path = tmp_path / "c.toml"
    path.write_text(to_toml(settings))
    assert load_settings(path, {}) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "unknown setting 'learning_rate'"),
        ("batchsize = 1", "unknown setting 'batchsize'; did you mean 'batch_size'?"),
        ('epochs = "two"', "epochs is 'two', it must be of type float"),
        ("batch_size = true", "batch_size is True, it must be of type int"),
        ("batch_size = 0", "batch_size is 0, it must be positive"),
        ("warmup = 1.5", "warmup is 1.5, it must be under 1"),
        ("lr = -1.0", "lr is -1.0, it must be a positive number"),
        ("lr = nan", "lr is nan, it must be a number"),
        ("epochs = nan", "epochs is nan, it must be a number"),
        ('dtype = "float16"', "dtype is 'float16', it must be one of auto, bfloat16, float32"),
        ('base = ""', "base is missing: give --base"),
        ("base =", "is not valid TOML"),
    ],
)
def test_wrong_settings_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    given = {key: value for key, value in NEEDED.items() if f"{key} =" not in text}
    with pytest.raises(SettingsError) as caught:
        load_settings(path, given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("gpu", "instructions", "wanted"),
    [
        (False, {}, "float32"),
        (False, {"avx2": True, "avx512_bf16": False}, "float32"),
        (False, {"avx512_bf16": True}, "bfloat16"),
        (False, {"architecture": "arm64", "bf16": True}, "bfloat16"),
        (True, {}, "bfloat16"),
    ],
)
def test_the_number_type_is_one_that_this_machine_is_fast_in(
    gpu: bool, instructions: dict[str, object], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions)
    for given in ({}, {"dtype": "auto"}):
        settings = load_settings(None, NEEDED | given)
        assert (settings.dtype, settings.saved_dtype) == (wanted, wanted)
        assert f'dtype = "{wanted}"' in to_toml(settings).splitlines()  # what a resumed run reads
    assert load_settings(None, NEEDED | {"dtype": "float32"}).dtype == "float32"


def test_every_setting_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses
    import inspect

    from guerdon.trainer.cli import app

    (reward,) = (each.callback for each in app.registered_commands if each.name == "reward")
    assert reward is not None
    options = {name.rstrip("_") for name in inspect.signature(reward).parameters}
    fields = {field.name for field in dataclasses.fields(AllSettings)}
    assert options - fields == {"config", "resume", "overwrite", "dry_run"}
    assert fields <= options


def test_dry_run_checks_and_writes_nothing(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_toy(tmp_path / "d.jsonl", 5, seed=0)
    arguments = [
        "train",
        "reward",
        "--base",
        str(base),
        "--train",
        str(data),
        "--eval",
        str(data),
        "--output",
        str(tmp_path / "run"),
        "--dry-run",
        "--lr",
        "0.001",
    ]
    assert main(arguments) == 0
    shown, said = capfd.readouterr()
    assert "5 held-out pairs have a prompt that is trained on" in " ".join(said.split())
    file = tmp_path / "reward.toml"  # what is shown, alone, is a config file
    file.write_text(shown)
    assert tomllib.loads(shown)["lr"] == 0.001
    assert load_settings(file, {}).learning_rate == 0.001
    assert not (tmp_path / "run").exists()


def test_the_projects_own_pairs_have_names(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "reward", "--base", str(base), "--output", str(tmp_path / "run")]
    arguments += ["--train", "helpful-train", "--eval", "helpful-eval"]
    assert main([*arguments, "--dry-run"]) == 0, capfd.readouterr().err
    shown, said = capfd.readouterr()
    assert tomllib.loads(shown)["train"] == "helpful-train"
    assert "of helpful-eval" in " ".join(said.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lr", "0"], "lr is 0.0, it must be a positive number"),
        (["--train", "none.jsonl"], "there is no file 'none.jsonl'"),
        (["--base", "./nowhere"], "there is no folder './nowhere'"),
        (["--max-length", "5"], "no row is left under 5 tokens"),
    ],
)
def test_errors_are_one_sentence(
    more: list[str], message: str, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_toy(tmp_path / "d.jsonl", 5, seed=0)
    arguments = [
        "train",
        "reward",
        "--base",
        str(base),
        "--train",
        str(data),
        "--eval",
        str(data),
        "--output",
        str(tmp_path / "run"),
        *more,
    ]
    assert main(arguments) in (1, 2)
    printed = capfd.readouterr().err
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()  # what is wrong is found before a folder is made


def test_bad_rows_exit_with_the_line(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{"chosen": "x"}])
    arguments = [
        "train",
        "reward",
        "--base",
        str(base),
        "--train",
        str(data),
        "--eval",
        str(data),
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(arguments) == 2
    assert "line 1: rejected: is missing" in " ".join(capfd.readouterr().err.split())


def test_bad_rows_that_are_skipped_are_named(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    data = write_rows(
        tmp_path / "[d].jsonl", [good, {"chosen": "[/x]"}, good, good | {"chosen": " "}]
    )
    arguments = [
        "train",
        "reward",
        "--base",
        str(base),
        "--train",
        str(data),
        "--eval",
        str(data),
        "--output",
        str(tmp_path / "run"),
        "--bad-rows",
        "skip",
        "--dry-run",
    ]
    assert main(arguments) == 0
    printed = capfd.readouterr().err
    assert f"train: 3 pairs of {data}\n" in printed
    assert "  1 malformed rows were skipped: line 2\n    line 2: rejected: is missing\n" in printed
    assert "  1 pairs occur more than once: line 3\n" in printed
    assert "  1 pairs have an empty answer, and are kept: line 4\n" in printed


def test_groups_may_have_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    share = {"value": 0.5, "low": None, "high": None}
    show_groups("[/b]", {"[/red]": {"n": 2, "accuracy": share}}, Console())
    printed = capsys.readouterr().out
    assert "[/b]" in printed
    assert "[/red]" in printed


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ('objective = "process"', {"center": 0.1}, "center is a setting of --objective preference"),
        ("ensemble = 2", {"objective": "attributes"}, "ensemble is a setting of --objective pref"),
        ('step_marker = "x"', {}, "step_marker is a setting of --objective process, and this is"),
        (
            'objective = "both"',
            {},
            "it must be one of preference, attributes, process",
        ),
        ('objective = "process"\nstep_maker = "x"', {}, "did you mean 'step_marker'?"),
    ],
)
def test_settings_of_another_objective_are_named(
    text: str, given: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, NEEDED | given)
    assert message in str(caught.value)


def test_every_objective_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    for more in (
        {"objective": "attributes", "attribute": ["a b=0.5", "c=-1"], "by": ["x"]},
        {"objective": "process", "step_aggregation": "product"},
        {"ensemble": 3, "aggregation": "mean_minus_std", "std_weight": 0.5, "margin_key": "m"},
    ):
        settings = load_settings(None, NEEDED | more)
        path.write_text(to_toml(settings))
        assert load_settings(path, {}) == settings


def test_a_finished_run_is_trained_anew_with_overwrite(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_toy(tmp_path / "d.jsonl", 8, seed=0)
    arguments = [
        "train",
        "reward",
        "--base",
        str(base),
        "--train",
        str(data),
        "--eval",
        str(data),
        "--output",
        str(tmp_path / "run"),
        "--no-plots",
        "--no-eval-before",
    ]
    assert main(arguments) == 0
    weights = tmp_path / "run" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main([*arguments, "--resume"]) == 0
    assert "this run ended already" in capfd.readouterr().err
    assert weights.stat().st_mtime_ns == before
    assert main([*arguments, "--overwrite"]) == 0
    assert "ended already" not in capfd.readouterr().err
    assert weights.stat().st_mtime_ns > before


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, guerdon.trainer.cli\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'matplotlib', 'peft'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
