"""`guerdon serve` finds services by entry point, and loads the one that is asked for."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from guerdon.serving import cli

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
SERVICES = [
    EntryPoint(name, value, cli.GROUP)
    for name, value in PROJECT["project"]["entry-points"][cli.GROUP].items()
]


def test_our_services_are_registered() -> None:
    assert {entry.name for entry in SERVICES} == {"gateway", "reward", "sampler"}
    assert all(isinstance(entry.load(), typer.Typer) for entry in SERVICES)


def test_services_are_listed_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "relay_service.py").write_text('"""Pass calls on."""\nraise RuntimeError\n')
    monkeypatch.syspath_prepend(tmp_path)
    added = [
        EntryPoint("away", "nowhere.cli:app", cli.GROUP),
        EntryPoint("relay", "relay_service:app", cli.GROUP),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda *, group: [*SERVICES, *added])
    shown = CliRunner().invoke(cli.new_app(), ["--help"])
    assert shown.exit_code == 0
    for words in (
        "reward",
        "Serve reward models",
        "sampler",
        "gateway",
        "away",
        "Added by nowhere.cli",
        "Pass calls on.",
    ):
        assert words in shown.output


def test_a_service_gets_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "added_service.py").write_text(
        "def app(args, prog_name):\n    print(prog_name, args)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entries = [*SERVICES, EntryPoint("added", "added_service:app", cli.GROUP)]
    monkeypatch.setattr(cli, "entry_points", lambda *, group: entries)
    cli.new_app()(
        ["added", "--port", "1", "--help"], prog_name="guerdon serve", standalone_mode=False
    )
    assert capsys.readouterr().out == "guerdon serve added ['--port', '1', '--help']\n"
    assert "added_service" in sys.modules
