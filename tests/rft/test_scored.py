"""The file of scored groups: what is written comes back, wherever the writer was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.rft.support import group_of

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.scored_store import ScoredGroups
from guerdon.trainer.common.services.types import Group, PromptRow


def prompts_of(count: int, sha256: str = "a" * 64) -> Prompts:
    ids = tuple(np.array([uid, 7], np.int32) for uid in range(count))
    rows = tuple(PromptRow(uid, ({"role": "user", "content": "?"},)) for uid in range(count))
    return Prompts("p.jsonl", sha256, rows, tuple(range(1, count + 1)), ids, ("",) * count, 0)


def scored(uid: int) -> Group:
    group = group_of(uid, [uid, 7], [([1, 2, 3], 0.1), ([4], -1 / 3)])
    for sample in group.samples:
        sample.behaviour_logprobs_T = np.float32([-0.1, -1e-9, -17.123456])[: sample.tokens]
        sample.parts = {"exact": sample.reward, "wörter": 2.0}
        sample.text = f"Zeile\n{uid} “ü” \u2028"
    return group


def same(one: Group, other: Group) -> None:
    assert one.task.uid == other.task.uid
    for mine, theirs in zip(one.samples, other.samples, strict=True):
        for name in mine.__slots__:
            left, right = getattr(mine, name), getattr(theirs, name)
            assert type(left) is type(right)
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype
                assert np.array_equal(left, right)
            else:
                assert left == right


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a run that scored tasks 3, 0 and 2 of 5, in this order."""
    groups = ScoredGroups(tmp_path / "scored.jsonl", prompts_of(5), 2)
    groups.begin()
    for uid in (3, 0, 2):
        groups.add(scored(uid))
    return tmp_path / "scored.jsonl"


def test_what_was_written_comes_back_to_the_bit(path: Path) -> None:
    found = ScoredGroups(path, prompts_of(5), 2)
    assert len(found) == 3
    assert [task.uid for task in found.missing] == [1, 4]
    for group, uid in zip(found.groups, (0, 2, 3), strict=True):
        same(group, scored(uid))
    found.begin()
    found.add(scored(1))
    assert [g.task.uid for g in ScoredGroups(path, prompts_of(5), 2).groups] == [0, 1, 2, 3]


def test_a_writer_may_be_killed_at_any_byte(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    torn = tmp_path / "torn.jsonl"
    for cut in sorted({*range(0, len(whole), 7), *(e + i for e in ends for i in (-1, 0, 1))}):
        torn.write_bytes(whole[:cut])
        found = ScoredGroups(torn, prompts_of(5), 2)
        lines = sum(end <= cut for end in ends)
        assert len(found) == max(lines - 1, 0)
        found.begin()
        found.add(scored(4))
        again = ScoredGroups(torn, prompts_of(5), 2)
        assert len(again) == len(found)
        same(again.groups[-1], scored(4))


def test_other_prompts_are_refused(path: Path) -> None:
    with pytest.raises(OutputError, match="sampled with other prompts"):
        ScoredGroups(path, prompts_of(5, sha256="b" * 64), 2)
    with pytest.raises(OutputError, match="another samples_per_prompt"):
        ScoredGroups(path, prompts_of(5), 3)


@pytest.mark.parametrize(
    "line",
    ['{"task": 99, "samples": []}', '{"task": 1, "samples": []}', '{"samples": []}', "[]", "1"],
)
def test_a_damaged_line_is_refused(line: str, path: Path) -> None:
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(OutputError, match="is damaged"):
        ScoredGroups(path, prompts_of(5), 2)


def test_a_sample_without_a_reward_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    group: Any = scored(1)
    group.samples[1].reward = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        ScoredGroups(path, prompts_of(5), 2).add(group)
    assert path.read_bytes() == before
