"""Which prompts and conversations are the same, word for word."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from guerdon.data import NO_INPUTS, TemplateInputs
from guerdon.trainer.common.measuring.measures import Ints, numbered


class Prompted(Protocol):
    """A row with a prompt."""

    @property
    def prompt(self) -> Sequence[Any]:
        """Its messages."""

    @property
    def inputs(self) -> TemplateInputs:
        """What the chat template is given beside them."""


def conversation_key(turns: Sequence[Any], inputs: TemplateInputs = NO_INPUTS) -> str:
    """The same for turns that are, with tools and variables of the template that are."""
    return json.dumps([turns, inputs.columns()])


def prompt_key(row: Prompted) -> str:
    """The same for rows that ask the same."""
    return conversation_key(row.prompt, row.inputs)


def prompt_numbers(rows: Iterable[Prompted]) -> Ints:
    """A number for each row, the same for rows that ask the same."""
    return numbered(map(prompt_key, rows))
