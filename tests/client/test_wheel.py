"""The built wheel in an empty environment: the client and the command, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from guerdon.trainer.common.data.rows import PROJECT_DATA

ROOT = Path(__file__).resolve().parents[2]

USE = """
import sys
from guerdon.client import Item, RewardClient
from guerdon.client.testing import FakeRewardServer
with FakeRewardServer() as server, RewardClient(server.target) as rewards:
    assert rewards.score("fake", [Item("p", ["abc"])]).scores == [[3.0]]
import importlib.util
for heavy in ("torch", "transformers", "fastapi"):
    assert importlib.util.find_spec(heavy) is None, heavy
print("scored")
"""


def run(*command: object, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_alone_is_a_client_without_torch(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path)
    run(*build, ROOT, cwd=ROOT)
    (wheel,) = tmp_path.glob("guerdon-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {str(path.relative_to(ROOT / "trainer")) for path in PROJECT_DATA.values()} <= held
    protos = {str(path.relative_to(ROOT)) for path in (ROOT / "protos").rglob("*.proto")}
    assert {f"guerdon/{path}" for path in protos} <= held
    page = (ROOT / "server/guerdon/serving/http/playground").iterdir()
    assert {str(path.relative_to(ROOT / "server")) for path in page if path.is_file()} <= held
    home = tmp_path / "venv"
    venv.create(home)
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python")
    # Compiling all modules takes longer than downloading them, and few are imported.
    run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)
    assert run(home / "bin" / "python", "-W", "error", "-c", USE, cwd=tmp_path) == "scored\n"
    assert "score" in run(home / "bin" / "guerdon", "--help", cwd=tmp_path)
