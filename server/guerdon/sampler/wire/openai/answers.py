"""The sampler's completions, and their log-probabilities, as OpenAI's answers. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from guerdon.sampler.sampling import Drawn
from guerdon.sampler.types import Completion, Piece
from guerdon.sampler.wire.openai.requests import SamplerRequest
from guerdon.serving.openai.replies import CHAT, AnswerShape, Envelope, Json, usage
from guerdon.serving.wire.convert import field_values


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


def known_tokens(drawn: Completion | Piece) -> set[int]:
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


@dataclass(frozen=True, slots=True)
class CompletionCounts:
    """What an answer's end tells of a completion, which may be long gone."""

    item: int
    prompt_tokens: int
    tokens: int
    version: int
    """The newest weights that had a part in it."""

    @classmethod
    def of(cls, one: Drawn) -> CompletionCounts:
        """The counts of a completion."""
        spans = one.completion.spans
        version = max(span.version for span in spans)
        return cls(one.item, len(one.prompt), len(one.completion.token_ids), version)


def whole_answer(
    envelope: Envelope, asked: SamplerRequest[Any], drawn: Sequence[Drawn], names: TokenTexts
) -> Json:
    """All choices at once."""
    choices = []
    for one in drawn:
        completion = one.completion
        fields = {
            **choice_end(completion),
            **choice_logprobs(envelope.shape, asked, completion, names, 0),
        }
        if asked.body.return_token_ids:
            fields["token_ids"] = completion.token_ids.tolist()
            if envelope.shape is not CHAT:
                fields["prompt_token_ids"] = one.prompt.tolist()
        index = one.item * asked.body.n + completion.index
        choices.append(envelope.shape.choice(index, one.text, **fields))
    prompt = {}
    if asked.body.return_token_ids and envelope.shape is CHAT:
        prompt = {"prompt_token_ids": drawn[0].prompt.tolist()}
    counts = list(map(CompletionCounts.of, drawn))
    return envelope.whole_answer(choices, total_usage(counts), **weight_version(counts), **prompt)


def choice_logprobs(
    shape: AnswerShape,
    asked: SamplerRequest[Any],
    drawn: Completion | Piece,
    names: TokenTexts,
    offset: int,
) -> Json:
    """The field `logprobs` of a choice, where it is asked for.

    Args:
        offset: characters of the tokens before.
    """
    if asked.most is None:
        return {}
    if shape is CHAT:
        return {"logprobs": chat_logprobs(drawn, names, asked.most)}
    return {"logprobs": text_logprobs(drawn, names, asked.most, offset)}


def choice_end(completion: Completion) -> Json:
    """Why a choice ended, and which weights drew it."""
    return {
        "finish_reason": completion.finish_reason.value,
        "stop_reason": completion.stop_text or None,
        "guerdon": {"weight_versions": [field_values(span) for span in completion.spans]},
    }


def weight_version(counts: Iterable[CompletionCounts]) -> Json:
    """The newest weights that had a part in an answer, also where OpenAI's clients look for it."""
    version = max(one.version for one in counts)
    return {"system_fingerprint": f"weights-{version}", "guerdon": {"weight_version": version}}


def total_usage(counts: Sequence[CompletionCounts]) -> Json:
    """Tokens of the prompts, each once, and of all completions."""
    prompts = {one.item: one.prompt_tokens for one in counts}
    return usage(sum(prompts.values()), sum(one.tokens for one in counts))
