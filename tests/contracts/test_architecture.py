"""The map of the folders is that of the folders."""

from __future__ import annotations

from tests.contracts.architecture import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.contracts.architecture"
