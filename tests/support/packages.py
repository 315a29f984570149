"""Packages of other projects, each in an environment of its own, and Debian's programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest


def python_with(folder: Path, *requirements: str, dependencies: bool = True) -> Path:
    """A new environment's Python, which has what this one has and some packages on top.

    Args:
        folder: where the environment is made.
        requirements: pinned, as pip takes them.
        dependencies: whether what they depend on is installed where it is missing here.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    here = sysconfig.get_path("purelib")
    Path(site, "base.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    flags = [] if dependencies else ["--no-deps"]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *flags, *requirements], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def run_program(python: Path, *command: object, timeout: float = 800) -> str:
    """What a program prints that runs in such an environment."""
    done = subprocess.run(
        [python, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need_program(name: str, *packages: str, required: bool = False) -> str:
    """A program's path; without it the test is skipped, and fails where it must run (CI).

    Args:
        packages: of Debian, which have it.
        required: whether it must run here too.
    """
    found = shutil.which(name)
    if found is None:
        reason = f"there is no {name} here: apt-get install {' '.join(packages)}"
        if required or os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
