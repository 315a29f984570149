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
        """The prompt's messages."""

    @property
    def inputs(self) -> TemplateInputs:
        """What the chat template is given beside them."""


def conversation_key(turns: Sequence[Any], inputs: TemplateInputs = NO_INPUTS) -> str:
    """A key that conversations share where turns, tools and template variables are equal."""
    return json.dumps([turns, inputs.columns()])


def prompt_key(row: Prompted) -> str:
    """A key that rows share whose prompts are equal."""
    return conversation_key(row.prompt, row.inputs)


def prompt_numbers(rows: Iterable[Prompted]) -> Ints:
    """A number for each row, the same for rows that ask the same."""
    return numbered(map(prompt_key, rows))
