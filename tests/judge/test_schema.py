"""A judge's own JSON schema: which one is taken, and what it allows, by examples."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guerdon.reward.judge.schema import ReplySchema
from guerdon.reward.models.loader import load_judge
from guerdon.serving.errors import CheckpointRefused

from .conftest import write_settings

URL = "http://127.0.0.1:1/v1"
REQUIRES_S = "type = 'object'\nrequired = ['s']\n[verdict.schema.properties]\n"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("type = 'text'", "schema.type is not what JSON Schema .draft 2020-12. allows there"),
        ("type = ['object']", "schema must be of an object that requires 's'"),
        ("type = 'object'", "schema must be of an object that requires 's'"),
        ("type = 'object'\nrequired = [['s']]", r"schema.required\[0\] is not what JSON Schema"),
        ("type = 'object'\nrequired = ['s']", "schema.properties must say what 's' is"),
        (REQUIRES_S + "s = true", "schema.properties must say what 's' is"),
        (REQUIRES_S + "s = {minimum = 1}", "s.type must be number or integer"),
        (
            REQUIRES_S + "s = {minimum = 'one'}",
            "schema.properties.s.minimum is not what JSON Schema",
        ),
        (REQUIRES_S + "s = {pattern = '('}", "schema.properties.s.pattern is not what JSON Schema"),
        (REQUIRES_S + "s = {'$ref' = 'https://a.test/s'}", "'https://a.test/s' must begin with #"),
        (REQUIRES_S + "s = {'$dynamicRef' = 'other.json#a'}", "'other.json#a' must begin with #"),
        (REQUIRES_S + "s = {'$ref' = '#/$defs/s'}", r"'#/\$defs/s' leads to no part of the schema"),
        (REQUIRES_S + "s = {enum = [{}], '$ref' = '#/properties/s/enum/0'}", "leads to no part"),
        (REQUIRES_S + "s = {minimum = 1, '$ref' = '#/properties/s/minimum'}", "leads to no part"),
        (
            REQUIRES_S + "s = {allOf = [true], '$ref' = '#/properties/s/allOf/a'}",
            "leads to no part",
        ),
        (
            REQUIRES_S + "s = {'$id' = 'https://a.test/s'}",
            "id may be that of the whole schema alone",
        ),
        (
            "'$schema' = 'http://json-schema.org/draft-07/schema#'\n" + REQUIRES_S,
            "schema must be https://json-schema.org/draft/2020-12/schema",
        ),
        (REQUIRES_S + "s = {type = 'number', maximum = 5}", "s.maximum is not 10"),
        (REQUIRES_S + "s = {type = 'string'}", "s.type must be number or integer"),
        (
            REQUIRES_S + "s = {type = 'string', enum = ['a', ['c']]}\n[verdict.values]\na = 1",
            r"s.enum has \['c'\], which is none of the words",
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


def wrong(path: str, why: str) -> Exception:
    return ValueError(f"{path} {why}")


TREE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"of": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}},
            "additionalProperties": False,
        }
    },
}


def nested(levels: int, innermost: dict[str, Any]) -> dict[str, Any]:
    for _ in range(levels):
        innermost = {"of": innermost}
    return innermost


@pytest.mark.parametrize(
    ("schema", "allowed", "refused", "place"),
    [
        ({"type": "number"}, [1, 1.5, -2e9], ["1", True, None, [], {}], "type"),
        ({"type": "integer"}, [1, 2.0], [1.5, False, float("inf")], "type"),
        ({"type": ["string", "null"]}, ["", None], [0, False], "type"),
        ({"enum": ["a", 1, [True]]}, ["a", 1, 1.0, [True]], ["b", True, [1]], "enum"),
        ({"const": 0}, [0, 0.0], [False, "0"], "const"),
        ({"minimum": 1}, [1, 1.5, "text"], [0.999], "minimum"),
        ({"exclusiveMaximum": 5}, [4.9], [5, 5.0, 10**400], "exclusiveMaximum"),
        ({"multipleOf": 0.5}, [2, 1.5], [1.25], "multipleOf"),
        ({"required": ["a"]}, [{"a": None}, 3], [{}, {"b": 1}], "required"),
        (
            {"properties": {"a": {"type": "null"}}},
            [{}, {"a": None}],
            [{"a": 0}],
            "properties.a.type",
        ),
        (
            {"properties": {"a": True}, "additionalProperties": False},
            [{}, {"a": 1}],
            [{"b": 1}, {"a": 1, "A": 1}],
            "additionalProperties",
        ),
        ({"items": {"maxLength": 2}}, [[], ["ab", 1]], [["ab", "abc"]], "items.maxLength"),
        ({"prefixItems": [{"const": 1}], "items": False}, [[], [1]], [[1, 2]], "items"),
        ({"allOf": [{}, {"minLength": 1}]}, ["a"], [""], "allOf[1].minLength"),
        ({"anyOf": [{"type": "string"}, {"minimum": 2}]}, ["a", 2], [1], "anyOf"),
        ({"not": {"type": "string"}}, [1], ["a"], "not"),
        ({"pattern": "^a.c$"}, ["abc", 1], ["abcd", ""], "pattern"),
        ({"uniqueItems": True}, [[1, True, "1"]], [[1, 1.0], [{}, {}]], "uniqueItems"),
        ({"format": "date", "unknown": 1}, ["no date", {}], [], ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"minimum": 1}}}, [1], [0], "minimum"),
        ({"$ref": "#b", "$defs": {"a": {"$anchor": "b", "minimum": 1}}}, [1], [0], "minimum"),
        (TREE, [{}, nested(5, {"n": 1})], [{"of": {"n": 1.5}}], "properties.of.properties.n.type"),
    ],
)
def test_what_a_schema_allows(
    schema: dict[str, Any], allowed: list[Any], refused: list[Any], place: str
) -> None:
    checked_by = ReplySchema(schema, "schema", wrong)
    for value in allowed:
        checked_by.check(value, "the reply", wrong)
    for value in refused:
        with pytest.raises(ValueError) as error:
            checked_by.check(value, "the reply", wrong)
        assert str(error.value) == f"the reply does not satisfy `{place}` of its schema"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (TREE, nested(2000, {"n": 1})),
        ({"$ref": "#"}, 1),
        ({"multipleOf": 0.5}, 10**400),
        ({"multipleOf": 0.5}, float("inf")),
    ],
    ids=["deep", "endless", "long", "infinite"],
)
def test_a_value_that_cannot_be_checked_is_refused(schema: dict[str, Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"^the reply can't be checked by its schema"):
        ReplySchema(schema, "schema", wrong).check(value, "the reply", wrong)


@pytest.mark.parametrize(
    "schema",
    [
        {"additionalProperties": {"type": "string"}},
        {"patternProperties": {"^s": {"enum": [2]}}},
        {"propertyNames": {"maxLength": 2}},
        {"properties": {"secret": True}, "unevaluatedProperties": False, "maxProperties": 0},
    ],
)
def test_errors_quote_nothing_of_the_reply(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        ReplySchema(schema, "schema", wrong).check({"s3cret": 12345}, "the reply", wrong)
    assert "3" not in str(error.value)


def test_a_schema_as_deep_as_settings_may_be_is_taken(tmp_path: Path) -> None:
    deep = "{type = 'array', items = " * 20 + "true" + "}" * 20
    schema = f"{REQUIRES_S}s = {{type = 'number'}}\nt = {deep}"
    verdict = f"[verdict]\nform = 'json'\nfield = 's'\n[verdict.schema]\n{schema}"
    load_judge(write_settings(tmp_path / "judge.toml", URL, verdict), "j")


def test_jsonschema_is_imported_for_judges_that_reply_in_json_alone(tmp_path: Path) -> None:
    file = write_settings(tmp_path / "judge.toml", URL)
    code = (
        "import sys, pathlib\n"
        "from guerdon.reward.models.loader import load_judge\n"
        f"file = pathlib.Path({str(file)!r})\n"
        "load_judge(file, 'j')\n"
        "assert not {'jsonschema', 'referencing'} & sys.modules.keys()\n"
        "file.write_text(file.read_text() + '[verdict]\\nform = \"json\"\\n')\n"
        "load_judge(file, 'j')\n"
        "assert 'jsonschema' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
