"""Settings that can't be, each said in one plain sentence, and how what is asked is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guerdon.gateway.app import connect
from guerdon.gateway.config import load_config
from guerdon.gateway.plans import PartialPlan
from guerdon.gateway.types import Strategy
from guerdon.settings import SettingsError

GOOD = {"sampler": "localhost:50052", "reward": ["localhost:50051/rm"]}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sampler": ""}, "give either --sampler or --endpoint"),
    ({"endpoint": "http://localhost:8000/v1"}, "give either --sampler or --endpoint"),
    ({"sampler": "", "endpoint": "http://localhost:8000/v1"}, "--endpoint-model"),
    ({"reward_page": "javascript:alert()"}, "reward_page must be a URL"),
    ({"endpoint": "localhost:8000"}, "endpoint must be a URL like http://HOST:PORT/v1"),
    ({"pass_to": "http://me:secret@localhost/v1"}, "pass_to must have no password"),
    ({"reward": ()}, "no reward model"),
    ({"reward": ["localhost:50051"]}, "is not HOST:PORT/MODEL"),
    ({"reward": ["a:1/rm", "b:1/rm"]}, "two models are called 'rm'"),
    ({"reward": ["a:1/rm@5f"]}, "'a:1/rm@5f' pins a revision"),
    ({"best_of": 65}, "best_of is 65, more than max_best_of"),
    ({"http_port": -1}, "http_port is -1, it must be between 0 and"),
    ({"name": "a:b"}, "name is 'a:b'"),
    ({"presets": {"best-of-2": {}}}, "can't name a preset"),
    ({"presets": {"x": {"best_of": 99}}}, "presets.x: best_of: is 99"),
    ({"presets": {"x": {"strategy": "cascade"}}}, "guerdon.small_model: is required by cascade"),
    ({"presets": {"x": {"model": "other"}}}, "guerdon.model: is 'other'"),
    ({"spending": {"caller_tokens": -1}}, "caller_tokens is -1"),
]


def load(**changes: Any) -> Any:
    given = {**GOOD, **changes}
    # A flag that is empty means not given: what a file would hold is built as one.
    return load_config(None, {key: value for key, value in given.items() if value != ()})


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_what_cannot_be_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**changes)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["endpoint", "pass_to"])
def test_a_key_is_not_sent_to_other_machines_unencrypted(name: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")

    def check(url: str, **settings: Any) -> None:
        changes = {"sampler": "", "endpoint_model": "m"} if name == "endpoint" else {}
        config = load(**{name: url, "endpoint_key_file": key, **changes, **settings})
        connect(config)

    with pytest.raises(SettingsError, match=f"{name} is http, which would show"):
        check("http://models.example/v1")
    check("http://models.example/v1", endpoint_key_over_http=True)
    check("https://models.example/v1")
    check("http://127.0.0.1:8000/v1")


def test_what_can_be_is_taken() -> None:
    config = load(presets={"careful": {"best_of": 16, "strategy": "soft", "temperature": 0.5}})
    assert config.models == {"rm": "localhost:50051"}
    assert config.presets["careful"].temperature == 0.5


def test_what_two_places_ask_is_merged_by_what_the_first_ones_strategy_reads() -> None:
    preset = PartialPlan(
        best_of=4, model="rm", strategy=Strategy.THRESHOLD, threshold=2.5, timeout=9.0
    )
    common = {"best_of": 4, "model": "rm", "timeout": 9.0}
    kept = {**common, "strategy": Strategy.THRESHOLD, "threshold": 2.5}
    soft = {"strategy": Strategy.SOFT}
    assert PartialPlan(**soft).over(preset).given() == {**common, **soft}
    assert PartialPlan(strategy=Strategy.THRESHOLD).over(preset).given() == kept
    assert PartialPlan(best_of=4).over(preset).given() == kept
    assert PartialPlan(threshold=1.0).over(preset).given() == {**kept, "threshold": 1.0}
    # A field of no strategy of theirs is for the check to refuse.
    assert PartialPlan(**soft).over(PartialPlan(margin=1.0)).given() == {**soft, "margin": 1.0}
    wrong = PartialPlan(**soft, threshold=1.0)
    assert wrong.over(preset).given() == {**common, **soft, "threshold": 1.0}
