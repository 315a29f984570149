"""Candidates from a Guerdon sampler, over gRPC."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.client import FormattedText, GuerdonError, Prompt, TokenIds
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Completion, CompletionProgress, GenerateItem
from guerdon.gateway.types import Draft, OnTokens, PolicyRequest
from guerdon.gateway.upstream.errors import policy_error, time_left
from guerdon.serving.prompts import Conversation

_APART = 1_000_003
"""What seeds of one request's draws are apart."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A candidate's tokens, with which it can be gone on with."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


class SamplerDrawer:
    """Draws candidates: one item with n completions, whose prompt is computed once.

    Args:
        client: without retries, which ask for what is missing and so favour short completions.
    """

    def __init__(self, client: AsyncPolicyClient) -> None:
        self._client = client

    async def draw(
        self,
        request: PolicyRequest,
        indices: Sequence[int],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        """Candidates, each as it ends; see `Drawer`."""

        def progress(each: CompletionProgress) -> None:
            on_tokens(indices[each.sample], each.tokens)

        seed = _seed(request, indices[0])
        items = [GenerateItem(_prompt(request), n=len(indices), seed=seed)]
        async with contextlib.aclosing(
            self._generate(request, items, max_tokens, deadline, progress)
        ) as completions:
            async for done in completions:
                prompt, tokens = _ids(done.prompt_token_ids), _ids(done.token_ids)
                yield Draft(
                    index=indices[done.sample],
                    text=done.text,
                    tokens=len(tokens),
                    prompt_tokens=len(prompt),
                    finish_reason=done.finish_reason,
                    ended=_ended(request, done, max_tokens, len(tokens)),
                    state=_Drawn(prompt, tokens),
                )

    async def go_on(
        self,
        request: PolicyRequest,
        drafts: Sequence[Draft],
        *,
        max_tokens: int,
        deadline: float,
        on_tokens: OnTokens,
    ) -> AsyncGenerator[Draft, None]:
        """The drafts with more tokens, each as it ends; see `Drawer`."""
        try:
            policy = await self._client.get_policy(timeout=time_left(deadline))
        except GuerdonError as error:
            raise policy_error(error) from error
        growing = []
        for draft in drafts:
            if draft.prompt_tokens + draft.tokens < policy.max_tokens:
                growing.append(draft)
            else:
                yield dataclasses.replace(draft, ended=True)
        if not growing:
            return

        def progress(each: CompletionProgress) -> None:
            draft = growing[each.item]
            on_tokens(draft.index, draft.tokens + each.tokens)

        items = [_continued(request, draft) for draft in growing]
        async with contextlib.aclosing(
            self._generate(request, items, max_tokens, deadline, progress)
        ) as completions:
            async for done in completions:
                draft = growing[done.item]
                tokens = draft.state.tokens + _ids(done.token_ids)
                text, stopped = _stopped(request, done.text)
                yield dataclasses.replace(
                    draft,
                    text=text,
                    tokens=len(tokens),
                    finish_reason="stop" if stopped else done.finish_reason,
                    ended=stopped or _ended(request, done, max_tokens, len(tokens)),
                    state=_Drawn(draft.state.prompt, tokens),
                )

    async def _generate(
        self,
        request: PolicyRequest,
        items: Sequence[GenerateItem],
        max_tokens: int,
        deadline: float,
        progress: Callable[[CompletionProgress], None],
    ) -> AsyncGenerator[Completion, None]:
        sampling = request.sampling
        drawing = self._client.generate(
            items,
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_token_ids=sampling.stop_token_ids,
            stop=sampling.stop,
            ignore_eos=sampling.ignore_eos,
            return_text=True,
            skip_special_tokens=sampling.skip_special_tokens,
            add_special_tokens=request.add_special_tokens,
            continues_text=not isinstance(request.prompt, Conversation),
            on_progress=progress,
            timeout=time_left(deadline),
        )
        try:
            async with contextlib.aclosing(drawing):
                async for completion in drawing:
                    yield completion
        except GuerdonError as error:
            raise policy_error(error) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


def _prompt(request: PolicyRequest) -> Prompt:
    if isinstance(request.prompt, Conversation):
        return request.prompt
    return FormattedText(request.prompt.text)


def _continued(request: PolicyRequest, draft: Draft) -> GenerateItem:
    drawn: _Drawn = draft.state
    prompt = TokenIds(drawn.prompt + drawn.tokens)
    seed = _seed(request, draft.index + draft.tokens * _APART)
    return GenerateItem(prompt, seed=seed, drawn=len(drawn.tokens))


def _seed(request: PolicyRequest, apart: int) -> int | None:
    """The seed of a draw, other than that of the request's other draws."""
    seed = request.sampling.seed
    return None if seed is None else (seed + apart * _APART) % 2**64


def _stopped(request: PolicyRequest, text: str) -> tuple[str, bool]:
    """A text up to the first stop text in it, and whether there is one.

    The sampler looks for them in new tokens alone, and one may begin in those drawn before.
    """
    places = [place for stop in request.sampling.stop if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _ended(request: PolicyRequest, done: Completion, asked: int, tokens: int) -> bool:
    """Whether it can't go on: it ended by itself, at its limit, or at the policy's longest."""
    return done.finished or tokens >= request.sampling.max_tokens or len(done.token_ids) < asked


def _ids(array: Any) -> tuple[int, ...]:
    return tuple(array.tolist())
