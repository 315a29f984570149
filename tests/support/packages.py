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
    venv.create(folder)  # pip is one of the packages that this environment has
    python = folder / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    here = sysconfig.get_path("purelib")
    Path(site, "base.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    flags = [] if dependencies else ["--no-deps"]
    # Compiling all modules takes longer than downloading them, and few are imported.
    flags += ["--no-compile", "--quiet", "--disable-pip-version-check"]
    command = [python, "-m", "pip", "install"]
    done = subprocess.run([*command, *flags, *requirements], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def node_modules_with(folder: Path, *packages: str) -> Path:
    """A folder's node_modules, which has packages of npm.

    Args:
        packages: pinned, as npm takes them.
    """
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *packages]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "node_modules"


def run_program(*command: object, timeout: float = 800, **environment: str) -> str:
    """What a program prints that runs in such an environment.

    Args:
        command: the environment's Python (or node), the program and its arguments.
        timeout: seconds.
        environment: variables that it has beside this process's.
    """
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
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
