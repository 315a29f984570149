"""Where the tensors of updates lie: what a start removes, and what it leaves alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from guerdon.sampler.engine import staging
from guerdon.sampler.engine.staging import StagingArea


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(staging, "_places", lambda: [tmp_path])
    return tmp_path


def test_a_start_removes_what_the_dead_left_and_nothing_else(place: Path) -> None:
    living = StagingArea()
    (lived,) = place.iterdir()
    dead = Path(tempfile.mkdtemp(prefix="guerdon-weights-", dir=place))
    (dead / "lock").touch()
    (dead / "000001.safetensors").write_bytes(b"left behind")
    foreign = Path(tempfile.mkdtemp(prefix="guerdon-weights-", dir=place))
    (foreign / "000001.safetensors").write_bytes(b"in use, by who takes no lock")
    shared = place / "guerdon-weights-00000001.safetensors"
    shared.write_bytes(b"a trainer's")
    new = StagingArea()
    left = set(place.iterdir())
    assert dead not in left
    assert {lived, foreign, shared} < left
    assert len(left) == 4
    living.close()
    new.close()
    assert set(place.iterdir()) == {foreign, shared}


def test_a_folder_that_another_start_takes_away_is_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = staging._lock, []

    def late(folder: Path, flags: int = 0) -> int:
        if flags & os.O_CREAT:
            asked.append(folder)
            if len(asked) == 1:
                folder.rmdir()
        return plain(folder, flags)

    monkeypatch.setattr(staging, "_lock", late)
    area = StagingArea()
    assert len(asked) == 2
    assert list(place.iterdir()) == asked[1:]
    area.close()
