"""What is installed without extras needs no module that only POSIX systems have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from guerdon.client.testing import FakeRewardServer

CODE = """
import asyncio, importlib, pkgutil, shutil, sys, tempfile, subprocess  # these ask the system
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None

import guerdon.cli, guerdon.client, guerdon.data, guerdon.models, guerdon.v1
for package in (guerdon.cli, guerdon.client, guerdon.data, guerdon.models, guerdon.v1):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

from guerdon.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_client_and_its_command_do_without_posix_modules(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "q", "responses": ["a", "bb"]}\n')
    with FakeRewardServer() as server:
        asked = ["score", "--model", "fake", "--server", server.target, source, "-o", out]
        done = subprocess.run(
            [sys.executable, "-c", CODE, *map(str, asked)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["scores"] == [1.0, 2.0]
