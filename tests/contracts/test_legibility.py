"""The measures of `python -m tests.legibility` that are to stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
from tests.legibility import ROOT, measures


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The measures of this checkout."""
    return dict(measures(ROOT))


def test_names_and_sentences(found: dict[str, Any]) -> None:
    """A function says what it gives, and a docstring's first line makes sense alone."""
    assert found["functions named *_of"] == 0
    assert found["docstrings without a subject"] == 0


def test_modules_can_be_read_at_a_sitting(found: dict[str, Any]) -> None:
    assert found["modules over 400 lines"] == 0


def test_algorithms_own_what_is_theirs(found: dict[str, Any]) -> None:
    assert found["isinstance or match on settings in the trainer"] == 0
