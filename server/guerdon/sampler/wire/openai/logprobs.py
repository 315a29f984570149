"""Log-probabilities of drawn tokens, as OpenAI's answers have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from guerdon.sampler.types import Completion, Piece

Decode = Callable[..., Any]
"""`Sampler.decode`."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text and log-probability."""

    text: str
    logprob: float

    def to_json(self) -> dict[str, Any]:
        """One as chat answers have it; a part of a character has no bytes that are known."""
        whole = "\ufffd" not in self.text
        data = list(self.text.encode()) if whole else None
        return {"token": self.text, "logprob": self.logprob, "bytes": data}


@dataclass(frozen=True, slots=True)
class Place:
    """The token that was drawn in one place, and the likeliest ones there."""

    drawn: TokenLogprob
    likeliest: Sequence[TokenLogprob]


async def places_of(drawn: Completion | Piece, decode: Decode, most: int) -> list[Place]:
    """The tokens of a completion, or of a piece of one, with their texts.

    Args:
        most: likeliest tokens of each place.
    """
    rows = [list(row.items())[:most] for row in drawn.alternatives] if most else []
    tokens = [*drawn.token_ids.tolist(), *(token for row in rows for token, _ in row)]
    texts = iter(await decode(*(np.asarray([token], dtype=np.int32) for token in tokens)))
    own = [TokenLogprob(next(texts), float(logprob)) for logprob in drawn.logprobs]
    likeliest = [[TokenLogprob(next(texts), logprob) for _, logprob in row] for row in rows]
    return [Place(each, likeliest[i] if most else ()) for i, each in enumerate(own)]


def chat_logprobs(places: Sequence[Place]) -> dict[str, Any]:
    """The `logprobs` of a choice of a chat answer."""
    return {
        "content": [
            place.drawn.to_json() | {"top_logprobs": [each.to_json() for each in place.likeliest]}
            for place in places
        ],
        "refusal": None,
    }


def text_logprobs(places: Sequence[Place], offset: int = 0) -> dict[str, Any]:
    """The `logprobs` of a choice of a text answer.

    Args:
        offset: characters of the tokens before.
    """
    texts = [place.drawn.text for place in places]
    return {
        "tokens": texts,
        "token_logprobs": [place.drawn.logprob for place in places],
        "top_logprobs": [
            {each.text: each.logprob for each in (*place.likeliest, place.drawn)}
            for place in places
        ],
        "text_offset": list(accumulate(map(len, texts[:-1]), initial=offset)) if texts else [],
    }
