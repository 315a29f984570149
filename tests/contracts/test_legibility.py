"""The measures of `python -m tests.legibility` that are to stay as they are."""

from tests.legibility import ROOT, measures

FOUND = dict(measures(ROOT))


def test_names_and_sentences() -> None:
    """A function says what it gives, and a docstring's first line makes sense alone."""
    assert FOUND["functions named *_of"] == 0
    assert FOUND["docstrings without a subject"] == 0


def test_modules_can_be_read_at_a_sitting() -> None:
    assert FOUND["modules over 400 lines"] == 0


def test_algorithms_own_what_is_theirs() -> None:
    assert FOUND["isinstance or match on settings in the trainer"] == 0
