"""docs/rl-reference.md says what the code says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.recipes.reference import PATH, whole
from tests.recipes.support import KINDS, make_group
from tests.recipes.test_shown import folder_of, summary_of

from guerdon.trainer.common.measuring import samples
from guerdon.trainer.common.measuring.samples import SampleTable
from guerdon.trainer.rl.report import summary as report


def test_the_page_is_up_to_date() -> None:
    assert PATH.read_text(encoding="utf-8") == whole(), "run python -m tests.recipes.reference"


def test_every_recipe_is_in_the_guide() -> None:
    guide = PATH.with_name("training-rl.md").read_text(encoding="utf-8")
    assert [kind.algorithm for kind in KINDS if f"| `{kind.algorithm}` |" not in guide] == []


def test_every_key_of_the_summary_is_explained(tmp_path: Path) -> None:
    assert summary_of(folder_of(tmp_path), 1.0).keys() <= report.KEYS.keys()


def test_every_key_of_a_sample_is_explained(tmp_path: Path) -> None:
    SampleTable(tmp_path / "s.jsonl", 1).add(1, [make_group(0, [1.0])])
    assert json.loads((tmp_path / "s.jsonl").read_text()).keys() == samples.KEYS.keys()
