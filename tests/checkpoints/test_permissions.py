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
import os, sys
from pathlib import Path
import torch, transformers  # found while this is still the user who installed them
from guerdon.models import ModelNotFound, resolve_model
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.serving.errors import CheckpointRefused
if os.geteuid() == 0:
    os.setgid({uid}); os.setuid({uid})
folder = Path(sys.argv[1])
for read in (inspect_checkpoint, lambda path: resolve_model(str(path))):
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


def read_as_stranger(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_STRANGER.format(uid=STRANGER), str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_weights_that_another_user_wrote_for_itself(reachable: Path) -> None:
    folder = tiny_checkpoint(reachable, "llama")
    weights = folder / "model.safetensors"
    weights.chmod(0o600 if os.geteuid() == 0 else 0o000)
    reasons = read_as_stranger(folder)
    assert [reason.split()[0] for reason in reasons] == ["CheckpointRefused", "ModelNotFound"]
    for reason in reasons:
        assert f"{weights} can't be read by uid" in reason
        assert f"its owner is uid {os.geteuid()}, its mode 0" in reason
        assert "chmod -R a+rX" in reason
        assert "copy it again" not in reason

    weights.chmod(0o644)
    assert read_as_stranger(folder) == [f"read {folder}"] * 2


def test_a_folder_that_can_not_be_entered(reachable: Path) -> None:
    (reachable / "own").mkdir()
    folder = tiny_checkpoint(reachable / "own" / "model", "llama")
    (reachable / "own").chmod(0o700 if os.geteuid() == 0 else 0o000)
    try:
        for reason in read_as_stranger(folder):
            assert str(folder) in reason
            assert "Permission denied" in reason
    finally:
        (reachable / "own").chmod(0o700)
