"""Candidates from an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from guerdon.gateway.types import OURS, Draft, OnTokens, PolicyRequest
from guerdon.gateway.upstream.openai_api import OpenAIAPI
from guerdon.serving.errors import ComputeFailed, Unsupported
from guerdon.serving.prompts import Conversation
from guerdon.together import cancel

_NOT_SENT = (*OURS, "stream", "stream_options", "seed", "max_tokens", "max_completion_tokens")


class EndpointDrawer:
    """Draws candidates: a request each, since not every endpoint takes n, or tells the tokens of
    each choice, or which has ended.

    Args:
        api: the endpoint.
    """

    def __init__(self, api: OpenAIAPI) -> None:
        self._api = api

    async def draw(
        self,
        request: PolicyRequest,
        indices: Sequence[int],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        """Candidates, each as it ends; see `Drawer`. An endpoint doesn't tell how far they are."""
        chat = isinstance(request.prompt, Conversation)
        path = "/chat/completions" if chat else "/completions"
        # One copy for all: it may be large.
        body = await self._api.encoded(_body(request, max_tokens))
        opened = body.removesuffix(b"}")

        async def one(index: int) -> Draft:
            seed = request.sampling.seed
            parts = (body,) if seed is None else (opened, b',"seed":%d}' % (seed + index))
            reply = await self._api.send(path, parts, deadline)
            return _draft(index, reply, chat=chat)

        drawing = [asyncio.ensure_future(one(index)) for index in indices]
        try:
            for finished in asyncio.as_completed(drawing):
                yield await finished
        finally:
            await cancel(drawing)

    async def go_on(
        self,
        request: PolicyRequest,
        drafts: Sequence[Draft],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        """Refuse: an endpoint draws whole completions.

        Raises:
            Unsupported: always.
        """
        raise Unsupported("an OpenAI endpoint can't go on with a part of a completion")
        yield  # it is a generator, as the protocol has it

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()


def _body(request: PolicyRequest, max_tokens: int) -> dict[str, Any]:
    """The caller's own request without its seed, for one choice with so many tokens at most."""
    given = request.sampling.body
    body = {key: value for key, value in given.items() if key not in _NOT_SENT}
    key = "max_completion_tokens" if given.get("max_completion_tokens") else "max_tokens"
    return {**body, key: max_tokens}


def _draft(index: int, reply: Mapping[str, Any], *, chat: bool) -> Draft:
    """The one choice of a reply.

    Raises:
        ComputeFailed: it has no text, or its tokens are not told.
    """
    try:
        choice, usage = reply["choices"][0], reply["usage"]
        message = choice["message"] if chat else choice
        text, finish = message["content" if chat else "text"], choice["finish_reason"]
        tokens, prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    except (LookupError, TypeError) as error:
        raise ComputeFailed("the endpoint's answer lacks a choice, or its usage") from error
    textless = chat and text is None
    if textless:
        text = ""
    if not isinstance(text, str) or not isinstance(finish, str):
        raise ComputeFailed("the endpoint's choice has no text, or no reason why it ended")
    if not isinstance(tokens, int) or not isinstance(prompt_tokens, int):
        raise ComputeFailed("the endpoint's usage has no numbers of tokens")
    said = {k: v for k, v in message.items() if chat and k not in ("role", "content") and v}
    return Draft(
        index=index,
        text=text,
        tokens=tokens,
        prompt_tokens=prompt_tokens,
        finish_reason=finish,
        textless=textless,
        own_prompt=True,
        said=said,
    )
