"""Paths that several systems have: what tells their requests apart."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import ANSWER, QUESTION, Formats

ITEMS = [{"prompt": QUESTION, "responses": [ANSWER]}]
NATIVE = {"model": "tiny", "items": ITEMS}


@pytest.mark.parametrize("name", ["queries", "documents", "text_1", "data_2", "use_activation"])
def test_items_with_responses_are_the_native_routes_alone(formats: Formats, name: str) -> None:
    """Whatever stands beside them: a key that it does not know is refused, as ever."""
    answer = formats.http.post("/v1/score", json={**NATIVE, name: "a"})
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == name
    assert "is not a known field" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "model: is required"),
        ({"model": "tiny"}, "items: is required"),
        ({"model": "tiny", "items": [QUESTION]}, "items[0]"),
        ({"model": "tiny", "query": QUESTION, "items": [ANSWER]}, "items[0]"),
        ([], "body"),
    ],
)
def test_what_has_no_pair_is_the_native_routes(formats: Formats, body: Any, says: str) -> None:
    answer = formats.http.post("/v1/score", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_ARGUMENT")
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"text_1": QUESTION}, "text_1: is required, and text_2"),
        ({"queries": QUESTION, "items": [{"prompt": "a"}]}, "items[0]"),
        ({"text_1": "a", "text_2": ["b"] * 5000}, "text_2: there are 5000, the limit is 4096"),
        ({"text_1": "a", "text_2": ["b", "x" * 5000]}, "text_2[1]: is too long"),
        ({"queries": "a", "documents": "b", "instruction": "c"}, "instruction: can't be set"),
    ],
)
def test_pairs_are_refused_as_vllm_refuses(formats: Formats, body: Any, says: str) -> None:
    error = formats.http.post("/v1/score", json=body).json()["error"]
    assert (error["code"], error["type"]) == (400, "BadRequestError")
    assert says in error["message"]
