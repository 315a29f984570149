"""Log-probabilities of drawn tokens, as OpenAI's answers have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from guerdon.sampler.types import Completion, Piece


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """What tokens are called: by their text, or `token_id:N` where the request asks for that."""

    texts: Mapping[int, str]
    by_id: bool

    def name(self, token: int) -> str:
        """The name of a token."""
        return f"token_id:{token}" if self.by_id else self.texts[token]

    def chat_entry(self, token: int, logprob: float) -> dict[str, Any]:
        """A token as chat answers have it; a part of a character has no bytes that are known."""
        text = self.texts[token]
        data = None if "\ufffd" in text else list(text.encode())
        return {"token": self.name(token), "logprob": logprob, "bytes": data}


def tokens_of(drawn: Completion | Piece) -> set[int]:
    """All tokens whose log-probabilities are known."""
    return {*drawn.token_ids.tolist(), *(token for row in drawn.alternatives for token in row)}


def chat_logprobs(drawn: Completion | Piece, names: TokenTexts, most: int) -> dict[str, Any]:
    """The `logprobs` of a choice of a chat answer.

    Args:
        drawn: the completion, or a piece of it.
        names: of all its tokens.
        most: likeliest tokens of each place that are told.
    """
    content = []
    for place, (token, logprob) in enumerate(_rows(drawn)):
        likeliest = list(drawn.alternatives[place].items())[:most] if most else []
        content.append(
            {
                **names.chat_entry(token, logprob),
                "top_logprobs": [names.chat_entry(*each) for each in likeliest],
            }
        )
    return {"content": content, "refusal": None}


def text_logprobs(
    drawn: Completion | Piece, names: TokenTexts, most: int, offset: int
) -> dict[str, Any]:
    """The `logprobs` of a choice of a text answer.

    Args:
        drawn: the completion, or a piece of it.
        names: of all its tokens.
        most: likeliest tokens of each place that are told.
        offset: characters of the tokens before.
    """
    rows = _rows(drawn)
    told = []
    for place, (token, logprob) in enumerate(rows):
        likeliest = list(drawn.alternatives[place].items())[:most] if most else []
        told.append({names.name(each): value for each, value in (*likeliest, (token, logprob))})
    return {
        "tokens": [names.name(token) for token, _ in rows],
        "token_logprobs": [logprob for _, logprob in rows],
        "top_logprobs": told,
        "text_offset": list(accumulate(text_sizes(drawn, names), initial=offset))[:-1],
    }


def text_sizes(drawn: Completion | Piece, names: TokenTexts) -> Sequence[int]:
    """Characters of each token's text."""
    return [len(names.texts[token]) for token in drawn.token_ids.tolist()]


def _rows(drawn: Completion | Piece) -> list[tuple[int, float]]:
    return list(zip(drawn.token_ids.tolist(), drawn.logprobs.tolist(), strict=True))
