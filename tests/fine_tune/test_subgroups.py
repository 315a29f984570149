"""`--by`: a group's measures are those of a run that holds out its rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fine_tune.support import KINDS, inputs_of, run, settings_of
from tests.trainer.toy import toy_rows, write_rows

from guerdon.trainer.common.errors import DataError

Toy = tuple[Path, Path]


def _rows() -> list[dict[str, Any]]:
    """Of two kinds, with rows between them that are left out, one as too long."""
    rows = [row | {"kind": "ab"[i % 2]} for i, row in enumerate(toy_rows(12, seed=2))]
    long = toy_rows(1, seed=3)[0] | {"kind": "a"}
    long["chosen"] = [{"role": "assistant", "content": "tens of words " * 200}]
    empty = toy_rows(1, seed=4)[0] | {"kind": "b"}
    empty["rejected"] = [{"role": "assistant", "content": " "}]
    rows.insert(3, long)
    rows.insert(6, empty)
    return rows


@pytest.mark.parametrize("algorithm", KINDS)
def test_a_field_breaks_the_measures_down(
    algorithm: str, policy: Path, toy: Toy, tmp_path: Path
) -> None:
    rows = _rows()
    together = write_rows(tmp_path / "all.jsonl", rows)
    more: dict[str, Any] = {"max_length": 128, "limit": 16}
    settings = settings_of(
        algorithm, policy, (toy[0], together), tmp_path / "run", by=["kind"], **more
    )
    summary, _ = run(settings)
    assert list(summary["subgroups"]) == ["kind"]
    for value, found in summary["subgroups"]["kind"].items():
        alone = write_rows(tmp_path / f"{value}.jsonl", [r for r in rows if r["kind"] == value])
        other, _ = run(
            settings_of(algorithm, policy, (toy[0], alone), tmp_path / f"run-{value}", **more)
        )
        assert other["subgroups"] == {}
        expected = other["after"] | {"nll_before": other["before"].get("nll")}
        assert found["n"] == other["data"]["eval"]["rows"] >= 6
        for key in set(found) - {"n"}:
            assert found[key] == pytest.approx(expected[key], abs=1e-5), key


def test_a_field_that_no_row_has_is_named(policy: Path, toy: Toy, tmp_path: Path) -> None:
    settings = settings_of("dpo", policy, toy, tmp_path / "run", by=["sort"])
    with pytest.raises(DataError, match=r"no row has the field 'sort' \(--by\)"):
        inputs_of(settings)
