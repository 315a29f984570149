"""OpenAI's requests in the sampler's terms, and its errors in theirs."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from guerdon.sampler.checks import MAX_SEED
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.types import GenerateItem, GenerateRequest, PlainText, SamplingOptions
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.openai.bodies import ChatBody, CompletionBody, SamplingBody, read_conversation
from guerdon.serving.prompts import Prompt
from guerdon.serving.wire.convert import check_count

_NO_LIMIT = 2**31 - 1
"""Tokens of a completion of a request that does not say: all that there is room for."""

B = TypeVar("B", bound=SamplingBody)


@dataclass(frozen=True, slots=True)
class SamplerRequest(Generic[B]):
    """A body, and what it asks the sampler for."""

    body: B
    request: GenerateRequest
    most: int | None
    """Likeliest tokens of each place that are told; None where no log-probabilities are."""

    @property
    def stream(self) -> bool:
        """Whether the answer is streamed."""
        return self.body.stream

    @property
    def timeout(self) -> float | None:
        """Seconds for the whole call."""
        return self.body.timeout


def chat_request(body: ChatBody) -> SamplerRequest[ChatBody]:
    """What a request for chat completions asks for.

    Raises:
        InvalidRequest: a message, a tool or a template's variable is malformed.
    """
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs", "needs logprobs to be true")
    prompt = read_conversation(body)
    most = body.top_logprobs if body.logprobs else None
    return _request(body, [prompt], body.max_completion_tokens or body.max_tokens, most)


def text_request(body: CompletionBody, limits: RequestLimits) -> SamplerRequest[CompletionBody]:
    """What a request for text completions asks for.

    Raises:
        InvalidRequest: there is no prompt, or there are too many.
    """
    given: Any = body.prompt
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise InvalidRequest("prompt", "must have at least one entry")
    check_count("prompt", len(given), limits.max_items)
    prompts = [
        PlainText(one, body.add_special_tokens)
        if isinstance(one, str)
        else np.asarray(one, dtype=np.int32)
        for one in given
    ]
    return _request(body, prompts, body.max_tokens, body.logprobs, continues=True)


def _request(
    body: B,
    prompts: list[Any],
    max_tokens: int | None,
    most: int | None,
    *,
    continues: bool = False,
) -> SamplerRequest[B]:
    seed = None if body.seed is None else body.seed & MAX_SEED
    items: list[GenerateItem] = []
    prompt: Prompt | PlainText
    for prompt in prompts:
        items.append(GenerateItem(prompt=prompt, n=body.n, seed=seed))
    options = SamplingOptions(
        max_tokens=_NO_LIMIT if max_tokens is None else max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),  # -1: all tokens, as 0
        stop_token_ids=tuple(body.stop_token_ids),
        stop=body.stops,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        continues_text=continues,
        top_logprobs=most or 0,
    )
    request = GenerateRequest(items=items, options=options, return_text=not body.stream)
    return SamplerRequest(body, request, most)


def within_room(
    asked: SamplerRequest[B], max_tokens: int, limits: RequestLimits, caller: Caller
) -> GenerateRequest:
    """The request with no more tokens for a completion than there may be.

    Args:
        max_tokens: of the longest sequence.

    Raises:
        InvalidRequest: it asks for more log-probabilities than one answer may tell.
    """
    request, options = asked.request, asked.request.options
    most = min(options.max_tokens, max_tokens)
    if options.max_tokens == _NO_LIMIT and caller.max_tokens is not None:
        most = max(1, min(most, caller.max_tokens // request.completions))
    if asked.most is not None:
        told = request.completions * most * (1 + asked.most)
        if told > limits.max_logprobs:
            raise InvalidRequest(
                "logprobs",
                f"would be up to {told} numbers, the limit is {limits.max_logprobs}: ask for fewer "
                "completions, tokens or alternatives at a time",
            )
    return dataclasses.replace(request, options=dataclasses.replace(options, max_tokens=most))


def openai_field(path: str, asked: SamplerRequest[Any] | None, *, chat: bool) -> str:
    """OpenAI's name of a field of the sampler's request, such as `items[0].prompt.conversation`.

    Args:
        path: of the field.
        asked: the request, if it could be read.
        chat: whether it is one for chat completions.
    """
    path = path.removeprefix("options.")
    item = re.match(r"items(\[\d+\])?\.?", path)
    if item is None:
        return path
    rest = path[item.end() :]
    if not rest:
        return "n"  # too many completions
    if not rest.startswith("prompt"):
        return rest
    if not chat:
        several = asked is not None and len(asked.request.items) > 1
        return f"prompt{item[1]}" if several else "prompt"
    _, _, turn = rest.partition("prompt.conversation.")
    return turn or "messages"
