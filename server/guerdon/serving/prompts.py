"""What a model is asked, in any of its forms, and which conversations are refused.

Pure Python: no protobuf, no I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.data import Conversation as Conversation
from guerdon.data import Message as Message
from guerdon.data import unknown_role
from guerdon.serving.errors import InvalidRequest

TokenArray = npt.NDArray[np.int32]
"""Token ids of one sequence or part of one, shape [T]."""

MAX_TOKEN_ID = 2**31 - 1
"""Larger than any vocabulary's ids."""


@dataclass(frozen=True, slots=True)
class FormattedText:
    """Text that is already rendered: tokenised as it stands, nothing added."""

    text: str


Prompt = Conversation | str | FormattedText | TokenArray
"""A conversation, plain text, rendered text, or token ids."""


@contextlib.contextmanager
def template_refusals(field: str) -> Iterator[None]:
    """A part in which a chat template is run: what it raises, as an error of the field.

    Raises:
        InvalidRequest: the template, which is a program, refuses what it is given.
    """
    try:
        yield
    except Exception as error:
        raise InvalidRequest(field, f"is refused by the chat template: {error}") from error


def check_roles(field: str, conversation: Conversation, known: Collection[str]) -> None:
    """Refuse roles that no model knows: many templates print any role.

    Args:
        field: of the prompt.
        conversation: of the prompt.
        known: roles that the model's template names, besides the usual ones.
    """
    for place, turn in enumerate(conversation.messages):
        wrong = unknown_role(turn["role"], known)
        if wrong:
            raise InvalidRequest(f"{field}.messages[{place}].role", wrong)
