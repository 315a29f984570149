"""Sequences of tokens: what the encoders have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from guerdon.data import ControlTokens
from guerdon.reward.types import (
    Dropped,
    ForeignText,
    FormattedText,
    PlainText,
    Response,
    ScoreItem,
    TokenArray,
)
from guerdon.serving.errors import InvalidRequest


@dataclass(slots=True)
class TokenSequence:
    """Prompt and one response as tokens."""

    ids: TokenArray
    prompt_end: Callable[[], int]
    """The first token that is not the prompt's any more; computed only where it matters."""
    types: TokenArray | None = None
    truncated: int = 0
    prompt_start: Callable[[], int] | None = None
    """The first token of the prompt, where a question stands before it."""
    dropped: tuple[Dropped, ...] = ()
    """What the chat template left out."""


def check_control_tokens(item: ScoreItem, tokens: ControlTokens) -> None:
    """Refuse texts that spell a control token; formatted text is meant to.

    Raises:
        InvalidRequest: with the field's path below the item.
    """
    prompt, texts = item.prompt, dict[str, str]()
    if isinstance(prompt, str):
        texts["prompt.text"] = prompt
    elif isinstance(prompt, tuple):
        for place, turn in enumerate(prompt):
            texts[f"prompt.conversation.messages[{place}].content"] = turn.content
    for place, response in enumerate(item.responses):
        if isinstance(response, str):
            texts[f"responses[{place}].text"] = response
    for field, text in texts.items():
        found = tokens.first_in(text)
        if found is not None:
            raise InvalidRequest(field, f"spells {found!r}, a control token of the model")


def hash_sequences(sequences: Sequence[TokenSequence]) -> tuple[str, ...]:
    """A hash of what the model sees of each sequence."""
    found = []
    for sequence in sequences:
        digest = hashlib.blake2b(sequence.ids.astype(np.int32, copy=False).tobytes(), digest_size=8)
        if sequence.types is not None:
            digest.update(sequence.types.tobytes())
        found.append(digest.hexdigest())
    return tuple(found)


def response_texts(responses: Sequence[Response]) -> list[str]:
    """Responses that are texts.

    Raises:
        InvalidRequest: one is token ids, or no Unicode.
    """
    found = []
    for place, response in enumerate(responses):
        if not isinstance(response, str):
            raise InvalidRequest(
                f"responses[{place}].token_ids", "is allowed only after a prompt of token ids"
            )
        check_unicode(f"responses[{place}].text", response)
        found.append(response)
    return found


def longest_field(item: ScoreItem) -> str:
    """The path of the longest text of an item: its prompt, or one of its responses."""
    prompt = item.prompt
    if isinstance(prompt, tuple):
        size = sum(len(turn.content) for turn in prompt)
    else:
        wrapped = FormattedText | PlainText | ForeignText
        size = len(prompt.text) if isinstance(prompt, wrapped) else len(prompt)
    place, response = max(enumerate(item.responses), key=lambda pair: len(pair[1]))
    return f"responses[{place}]" if len(response) > size else "prompt"


def check_unicode(field: str, text: str) -> None:
    """Refuse half surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            field, f"is not valid Unicode: half a surrogate pair at character {error.start}"
        ) from None


def leading(ids: TokenArray, tokens: Collection[int | None]) -> int:
    """How many of the first three tokens, from the start on, are among these."""
    count = 0
    for token in ids[:3].tolist():
        if token not in tokens:
            break
        count += 1
    return count


def last_run(ids: TokenArray, run: npt.NDArray[np.int64]) -> int | None:
    """The place at which the last occurrence of a run of tokens begins."""
    if len(ids) < len(run):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(run))
    found = np.flatnonzero((windows == run).all(axis=1))
    return int(found[-1]) if len(found) else None


def common_prefix(sequences: Sequence[TokenArray]) -> int:
    """Tokens that all sequences begin with, short of the shortest one's last; 0 for one alone."""
    if len(sequences) == 1:
        return 0
    first, shared = sequences[0], min(len(ids) for ids in sequences) - 1
    for ids in sequences[1:]:
        parted = np.flatnonzero(ids[:shared] != first[:shared])
        if len(parted):
            shared = int(parted[0])
    return shared
