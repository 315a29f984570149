"""Which answers open as refusals: the documented rule, and where it is known to be wrong."""

from __future__ import annotations

import pytest

from guerdon.trainer.evaluate.policy.refusals import OPENINGS, is_refusal


@pytest.mark.parametrize("opening", OPENINGS)
def test_every_opening_in_any_case(opening: str) -> None:
    for text in (opening, opening.upper(), opening.capitalize()):
        assert is_refusal(f"{text}, and no more.")


@pytest.mark.parametrize(
    "text",
    [
        "I can’t help with that.",
        '\n "I\'m sorry, but I cannot do this."',
        "**Sorry**, no.",
        "I  am\nsorry, but no.",
        "As an AI language model, I have no opinions.",
        "I'm sorry. I can't.",
        "<think>\nHm.\n</think>\n\nI can't help with that.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello!",
        "Sure. I'm sorry to say that it is illegal.",
        "I'm sorry to hear that. Try to rest.",
        "I am so sorry for your loss.",
        "Sorry about your cat; here is what you could do.",
        "I can't wait to tell you.",
        "As an airline, we fly.",
        "Sorrybook is a site.",
        "It is illegal and unethical to litter.",
    ],
)
def test_answers(text: str) -> None:
    assert not is_refusal(text)


def test_known_faults() -> None:
    """What the rule can't tell; see its docstring."""
    assert is_refusal("I cannot recommend this book enough!")
    assert not is_refusal("That is not something I'm able to help with.")
    assert not is_refusal("Es tut mir leid, dabei kann ich nicht helfen.")
