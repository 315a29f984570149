"""OpenAI's requests in the sampler's terms, and its errors in theirs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from guerdon.sampler.checks import MAX_SEED
from guerdon.sampler.types import (
    EngineInfo,
    GenerateItem,
    GenerateRequest,
    PlainText,
    SamplingOptions,
)
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.openai.bodies import ChatBody, CompletionBody, SamplingBody, conversation_of
from guerdon.serving.prompts import Prompt


def chat_request(body: ChatBody, info: EngineInfo) -> GenerateRequest:
    """What a request for chat completions asks for.

    Raises:
        InvalidRequest: a message, a tool or a template's variable is malformed.
    """
    prompt = conversation_of(body)
    most = body.max_completion_tokens or body.max_tokens
    top = body.top_logprobs if body.logprobs else 0
    return _request(body, [prompt], most, top, info)


def text_request(body: CompletionBody, info: EngineInfo) -> GenerateRequest:
    """What a request for text completions asks for.

    Raises:
        InvalidRequest: there is no prompt.
    """
    given: Any = body.prompt
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise InvalidRequest("prompt", "must have at least one entry")
    prompts = [
        PlainText(one, body.add_special_tokens)
        if isinstance(one, str)
        else np.asarray(one, dtype=np.int32)
        for one in given
    ]
    return _request(body, prompts, body.max_tokens, body.logprobs or 0, info)


def _request(
    body: SamplingBody,
    prompts: list[Any],
    max_tokens: int | None,
    top_logprobs: int,
    info: EngineInfo,
) -> GenerateRequest:
    seed = None if body.seed is None else body.seed & MAX_SEED
    items: list[GenerateItem] = []
    prompt: Prompt | PlainText
    for prompt in prompts:
        items.append(GenerateItem(prompt=prompt, n=body.n, seed=seed))
    options = SamplingOptions(
        max_tokens=min(max_tokens or info.max_tokens, info.max_tokens),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),  # -1: all tokens, as 0
        stop_token_ids=tuple(body.stop_token_ids),
        stop=body.stops,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        top_logprobs=top_logprobs,
    )
    return GenerateRequest(items=items, options=options, return_text=True)


def openai_field(path: str, *, chat: bool) -> str:
    """OpenAI's name of a field of the sampler's request, such as `items[0].prompt.conversation`."""
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
        return f"prompt{item[1]}"
    _, _, turn = rest.partition("prompt.conversation.")
    return turn or "messages"
