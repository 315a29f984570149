"""What a model is asked, in any of its forms. Pure Python: no protobuf, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.data import Conversation as Conversation
from guerdon.data import Message as Message

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
