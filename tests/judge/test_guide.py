"""docs/judges.md: its settings are taken, and its table has all of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from guerdon.reward.judge.settings import JudgeLimits, JudgeSettings, JudgeVerdictSettings
from guerdon.reward.models.loader import load_judge

PAGE = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_example_loads(tmp_path: Path) -> None:
    first, *others = blocks("toml")
    (template,) = blocks("jinja")
    (tmp_path / "judge.jinja").write_text(template)
    (schema,) = blocks("json")
    (tmp_path / "rubric.json").write_text(schema)
    file = tmp_path / "judge.toml"
    seen = set()
    for example in ("", *others):
        file.write_text(first + example)
        seen.add(load_judge(file, "j").info.revision)
    assert len(seen) == 1 + len(others) == 7


def test_the_table_has_every_setting() -> None:
    table = PAGE.split("## All settings")[1].split("\n\n")[1]
    kinds = (JudgeSettings, JudgeVerdictSettings, JudgeLimits)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for keys in rows for name in re.findall(r"`\[?(\w+)\]?`", keys)}
    assert named <= fields
    assert {
        name for name in fields if f"`{name}`" not in table and f"[{name}]" not in table
    } == set()
