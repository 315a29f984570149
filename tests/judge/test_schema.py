"""A judge's own JSON schema: which one is taken, and what it allows, against `jsonschema`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from guerdon.reward.judge.schema import check_schema, check_value
from guerdon.reward.models.loader import load_judge
from guerdon.serving.errors import CheckpointRefused

from .conftest import write_settings

URL = "http://127.0.0.1:1/v1"
REQUIRES_S = "type = 'object'\nrequired = ['s']\n[verdict.schema.properties]\n"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("type = 'text'", "schema.type must be one of"),
        ("type = ['object']", "schema.type must be one of"),
        ("type = 'object'", "schema must be of an object that requires 's'"),
        ("type = 'object'\nrequired = [['s']]", "schema.required must be a list of names"),
        (REQUIRES_S + "t = {type = 'string'}", "schema.required must be a list of names"),
        (REQUIRES_S + "s = {type = 'number', multipleOf = 2}", "s.multipleOf is a keyword that"),
        (REQUIRES_S + "s = {type = 'number', maximum = 5}", "s.maximum is not 10"),
        (REQUIRES_S + "s = {type = 'number', enum = [[1]]}", "s.enum and const must be texts"),
        (REQUIRES_S + "s = {type = 'string'}", "s.type must be number or integer"),
        (
            REQUIRES_S + "s = {type = 'string', enum = ['a', 'c']}\n[verdict.values]\na = 1",
            "s.enum has 'c', which is none of the words",
        ),
    ],
)
def test_a_schema_that_replies_cannot_be_held_to_is_refused(
    tmp_path: Path, schema: str, message: str
) -> None:
    verdict = f"[verdict]\nform = 'json'\nfield = 's'\n[verdict.schema]\n{schema}"
    with pytest.raises(CheckpointRefused, match=rf"verdict.*{message}"):
        load_judge(write_settings(tmp_path / "judge.toml", URL, verdict), "j")


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        ("schema_file = 'missing'\nform = 'json'", "verdict.schema_file .* cannot be read"),
        ("schema_file = 'empty'\nform = 'json'", "verdict.schema_file holds no JSON schema"),
        ("schema_file = 'empty'", "verdict: a schema of your own needs form json"),
        ("schema_file = 'empty'\nschema = {a = 1}", "verdict: schema and schema_file are both"),
    ],
)
def test_a_schema_that_is_not_there_is_refused(tmp_path: Path, verdict: str, message: str) -> None:
    (tmp_path / "empty").write_text("{}")
    with pytest.raises(CheckpointRefused, match=message):
        load_judge(write_settings(tmp_path / "judge.toml", URL, f"[verdict]\n{verdict}"), "j")


NAMES = st.sampled_from("ab")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, 0.5, 1.0, -1.5]),
    NAMES,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=6,
)


def with_members(schema: dict[str, Any], required: set[str]) -> dict[str, Any]:
    known = [name for name in schema.get("properties", {}) if name in required]
    return {**schema, "required": known}


def schemas(inner: Any) -> Any:
    types = ("object", "array", "string", "number", "integer", "boolean", "null")
    some = st.fixed_dictionaries(
        {"type": st.sampled_from(types)},
        optional={
            "enum": st.lists(SCALARS, min_size=1, max_size=3),
            "const": SCALARS,
            "minimum": st.integers(-1, 1),
            "maximum": st.sampled_from([0, 0.5, 1]),
            "description": st.just("d"),
            "properties": st.dictionaries(NAMES, inner),
            "additionalProperties": st.booleans(),
            "items": inner,
        },
    )
    return st.builds(with_members, some, st.sets(NAMES))


LEAVES = st.fixed_dictionaries({"type": st.sampled_from(("string", "number", "integer"))})


@given(st.recursive(LEAVES, schemas, max_leaves=4), VALUES)
def test_a_schema_allows_what_jsonschema_says(schema: dict[str, Any], value: Any) -> None:
    def fail(path: str, why: str) -> Exception:
        return ValueError(f"{path} {why}")

    check_schema(schema, "schema", fail)
    try:
        check_value(value, schema, "the value", fail)
        allowed = True
    except ValueError:
        allowed = False
    assert allowed == Draft202012Validator(schema).is_valid(value)
