"""Settings from a file and flags; refusals as one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.forked import Child, serve_reward

from guerdon.cli.main import main
from guerdon.reward.config import RewardConfig, load_config
from guerdon.serving.credentials import is_loopback, read_token
from guerdon.settings import SettingsError

FILE = """
port = 1234
drain_grace = 5
[models]
a = "/models/a"
b = "hub/b"
[aliases]
best = "a"
[engine]
dtype = "bfloat16"
[batching]
max_batch_tokens = 100
[queue]
max_queued_tokens = 1000
[limits]
max_items = 7
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(text)
    return path


def test_a_file_and_flags_on_top(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, FILE),
        {"models": {"b": "/other"}, "engine.dtype": "float32", "port": 0, "host": None},
    )
    assert config.models == {"a": "/models/a", "b": "/other"}
    assert config.aliases == {"best": "a"}
    assert (config.port, config.host, config.drain_grace) == (0, "127.0.0.1", 5.0)
    assert config.engine.dtype == "float32"
    assert config.batching.max_batch_tokens == 100
    assert config.queue.max_queued_tokens == 1000
    assert config.limits.max_items == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "unknown setting 'prot'; did you mean 'port'?"),
        (
            "[engine]\ndytpe = 'float32'",
            "'engine.dytpe'; did you mean 'engine.dtype'?",
        ),
        ("port = 'x'", "port is 'x', it must be of type int"),
        ("port = true", "port is True, it must be of type int"),
        ("port = 70000", "port is 70000"),
        ("engine = 3", "engine must be a table"),
        ("[engine]\ndtype = 'float64'", "engine: dtype is 'float64', it must be one of"),
        ("[models]\na = 3", "models.a is 3, it must be of type str"),
        ("[limits]\nmax_items = 0", "limits: max_items is 0, it must be positive"),
        ("tls_key = 'x'", "tls_certificate and tls_key come together or not at all"),
        ("= 3", "is not valid TOML"),
    ],
)
def test_refusals(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_config(write(tmp_path, text), {})
    assert said in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_config(tmp_path / "none.toml", {})


def test_an_open_admin_port_needs_a_token() -> None:
    config = RewardConfig(admin_port=0, admin_host="0.0.0.0")
    config.check_exposure(admin_token=True)
    with pytest.raises(SettingsError, match="GUERDON_ADMIN_TOKEN"):
        config.check_exposure(admin_token=False)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
        ("example.org", False),
    ],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "from-environment\n")
    assert read_token("SOME_TOKEN", None) == "from-environment"
    file = write(tmp_path, "from-file\n")
    assert read_token("SOME_TOKEN", file) == "from-file"
    for bad in (write(tmp_path, "  \n"), tmp_path / "none"):
        with pytest.raises(SettingsError):
            read_token("SOME_TOKEN", bad)


def check_refusal(code: object, printed: str, said: str) -> None:
    assert code == 2, printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("guerdon serve reward: ")
    assert said in last
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no model to serve"),
        (["--model", "nodir"], "--model must be NAME=VALUE"),
        (["--model", "a=x", "--model", "a=y"], "gives 'a' twice"),
        (["--model", "a=x", "--dtype", "int3"], "dtype is 'int3'"),
    ],
)
def test_refusals_of_the_command_are_one_sentence_and_exit_code_2(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "reward", *flags])
    check_refusal(ended.value.code, capsys.readouterr().err, said)


@pytest.mark.slow
def test_a_folder_without_a_model_is_refused_by_the_process(tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "none", "there is no folder"), (tmp_path, "config.json")):
        flags = ["--model", f"a={folder}", "--port", "0", "--http-port", "-1"]
        child = Child(tmp_path / f"{said}.log", serve_reward, *flags)
        check_refusal(child.wait(), child.log(), said)


def test_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, guerdon.serving.cli, guerdon.reward.cli, guerdon.reward.config\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
