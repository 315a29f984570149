"""A folder that the server's user may not read is named as that, file and owner."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.tiny import tiny_checkpoint

STRANGER = 10001
"""The images' user."""

READ_AS_STRANGER = """
import itertools, os, sys
from pathlib import Path
import torch, transformers  # found while this is still the user who installed them
from guerdon.models import ModelNotFound, resolve_model
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.serving.errors import CheckpointRefused
if os.geteuid() == 0:
    os.setgid({uid}); os.setuid({uid})
reads = (inspect_checkpoint, lambda path: resolve_model(str(path)))
for folder, read in itertools.product(map(Path, sys.argv[1:]), reads):
    try:
        print("read", read(folder) and folder)
    except (CheckpointRefused, ModelNotFound) as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are its user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def read_as_stranger(*folders: Path) -> list[str]:
    """What is said of each folder, as a checkpoint and as a model."""
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_STRANGER.format(uid=STRANGER), *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_what_another_user_keeps_for_itself_is_named_as_that(reachable: Path) -> None:
    """Weights, and a folder that can't be entered, beside one that may be read."""
    root = os.geteuid() == 0
    open_to_all = tiny_checkpoint(reachable / "open", "llama")
    closed = Path(shutil.copytree(open_to_all, reachable / "closed"))
    weights = closed / "model.safetensors"
    (reachable / "own").mkdir()
    hidden = Path(shutil.copytree(open_to_all, reachable / "own" / "model"))
    (open_to_all / "model.safetensors").chmod(0o644)
    weights.chmod(0o600 if root else 0o000)
    (reachable / "own").chmod(0o700 if root else 0o000)
    try:
        said = read_as_stranger(open_to_all, closed, hidden)
    finally:
        (reachable / "own").chmod(0o700)
    assert said[:2] == [f"read {open_to_all}"] * 2
    assert [reason.split()[0] for reason in said[2:4]] == ["CheckpointRefused", "ModelNotFound"]
    for reason in said[2:4]:
        assert f"{weights} can't be read by uid" in reason
        assert f"its owner is uid {os.geteuid()}, its mode 0" in reason
        assert "chmod -R a+rX" in reason
        assert "copy it again" not in reason
    for reason in said[4:]:
        assert str(hidden) in reason
        assert "Permission denied" in reason
    assert len(said) == 6
