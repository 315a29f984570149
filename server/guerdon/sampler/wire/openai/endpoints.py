"""Chat and text completions of OpenAI's API, drawn by the sampler."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeVar

from fastapi import Request
from fastapi.responses import Response

from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn, Sampler, said_tokens, split_prompt
from guerdon.sampler.types import Completion, GenerateRequest, Piece, PolicyEngine
from guerdon.sampler.wire.openai.answers import (
    CompletionCounts,
    TokenTexts,
    choice_end,
    choice_logprobs,
    known_tokens,
    text_sizes,
    total_usage,
    weight_version,
    whole_answer,
)
from guerdon.sampler.wire.openai.growing_text import GrowingText
from guerdon.sampler.wire.openai.requests import (
    SamplerRequest,
    chat_request,
    openai_field,
    text_request,
    within_room,
)
from guerdon.serving.calls import Call
from guerdon.serving.errors import InvalidRequest, NotFound
from guerdon.serving.http.foreign import read_body
from guerdon.serving.openai.bodies import ChatBody, CompletionBody, SamplingBody, check_neutral
from guerdon.serving.openai.events import event
from guerdon.serving.openai.replies import CHAT, TEXT, AnswerShape, Envelope, Json, as_bytes
from guerdon.serving.openai.routes import Endpoint
from guerdon.serving.prompts import TokenArray

B = TypeVar("B", bound=SamplingBody)

_BYTES_PER_LOGPROB = 50
"""Bytes of an answer's JSON for each log-probability, about."""


class SamplerEndpoint(Endpoint[Call, SamplerRequest[B]]):
    """An endpoint of OpenAI's API whose completions the sampler draws.

    Args:
        name: what the policy is called.
    """

    shape: ClassVar[AnswerShape]

    def __init__(
        self, sampler: Sampler, engine: PolicyEngine, name: str, limits: RequestLimits
    ) -> None:
        self._sampler = sampler
        self._engine = engine
        self._name = name
        self._limits = limits

    @abstractmethod
    def ask(self, value: Json) -> SamplerRequest[B]:
        """What a body's JSON asks for, in the sampler's terms.

        Raises:
            InvalidRequest: names the first field at fault.
        """

    def read(self, value: Json, _request: Request) -> SamplerRequest[B]:
        """What a body's JSON asks for."""
        check_neutral(value)
        if value.get("best_of") not in (None, 1, value.get("n")):
            raise InvalidRequest("best_of", "takes a best-of-n gateway: leave it out")
        return self.ask(value)

    def renamed(
        self, error: InvalidRequest, asked: SamplerRequest[B] | None = None
    ) -> InvalidRequest:
        """The error with OpenAI's name of its field."""
        field = openai_field(error.field, asked, chat=self.shape is CHAT)
        return InvalidRequest(field, error.reason)

    async def answer(self, call: Call, asked: SamplerRequest[B]) -> Response:
        """All choices at once."""
        request = self._checked(call, asked)
        drawn: list[Drawn] = []

        async def keep(one: Drawn) -> None:
            drawn.append(one)

        await self._sampler.draw(call, request, keep)
        drawn.sort(key=lambda one: (one.item, one.completion.index))
        names = await self._names(asked, *(one.completion for one in drawn))
        envelope = self._envelope(asked)

        def write() -> tuple[bytes, int]:
            whole = whole_answer(envelope, asked, drawn, names)
            return as_bytes(whole), whole["guerdon"]["weight_version"]

        tokens = sum(len(one.completion.token_ids) for one in drawn)
        size = tokens * (2 + (asked.most or 0)) * _BYTES_PER_LOGPROB
        data, version = await self._sampler.off_loop(size, write)
        headers = {"x-guerdon-weight-version": str(version)}
        return Response(data, headers=headers, media_type="application/json")

    async def stream(self, call: Call, asked: SamplerRequest[B]) -> AsyncGenerator[bytes, None]:
        """Each choice as it grows."""
        request = self._checked(call, asked)
        envelope = self._envelope(asked)
        choices: dict[int, _Choice] = {}
        counts: list[CompletionCounts] = []
        prompt: Json | None = None
        async with self._drawing(call, request) as arriving:
            while (arrived := await arriving.get()) is not None:
                told: Json | None
                part = arrived.part
                index = arrived.item * asked.body.n + arrived.completion
                if index not in choices:
                    text = self._text(request, arrived.prompt)
                    choices[index] = _Choice(index, text, arrived.prompt)
                if prompt is None:
                    prompt = self._prompt(asked, arrived.prompt)
                if isinstance(part, Drawn):
                    counts.append(CompletionCounts.of(part))
                    told = await self._ended(asked, choices.pop(index), part.completion)
                else:
                    told = await self._grown(asked, choices[index], part)
                if told is not None:
                    yield event(envelope.chunk(told, **prompt))
                    prompt = {}
                arrived.taken.set()
        if asked.body.stream_options.include_usage:
            yield event(envelope.chunk(usage=total_usage(counts), **weight_version(counts)))

    @asynccontextmanager
    async def _drawing(
        self, call: Call, request: GenerateRequest
    ) -> AsyncGenerator[asyncio.Queue[_Arrived | None], None]:
        """What is drawn, as it arrives, and None at its end; leaving the block stops the drawing.

        A completion holds its room until it was taken.
        """
        arriving: asyncio.Queue[_Arrived | None] = asyncio.Queue()

        async def hand_over(one: Drawn) -> None:
            arrived = _Arrived(one.item, one.prompt, one)
            arriving.put_nowait(arrived)
            await arrived.taken.wait()

        def grown(place: int, prompt: TokenArray, piece: Piece) -> None:
            arriving.put_nowait(_Arrived(place, prompt, piece))

        drawing = asyncio.create_task(self._sampler.draw(call, request, hand_over, grown))
        drawing.add_done_callback(lambda _: arriving.put_nowait(None))
        try:
            yield arriving
            await drawing  # raises what ended it
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})

    def _checked(self, call: Call, asked: SamplerRequest[B]) -> GenerateRequest:
        """The request within what there is room for, of this policy."""
        info, model = self._engine.info, asked.body.model
        if model not in ("", self._name, info.model):
            raise NotFound(f"there is no model {model!r} here: the policy is {self._name!r}")
        return within_room(asked, info.max_tokens, self._limits, call.caller)

    def _envelope(self, asked: SamplerRequest[B]) -> Envelope:
        return Envelope.new(self.shape, asked.body.model or self._name)

    def _text(self, request: GenerateRequest, prompt: TokenArray) -> GrowingText:
        options = request.options
        ends = {*self._engine.info.eos_token_ids, *options.stop_token_ids}
        before, _ = split_prompt(prompt, 0, continues=options.continues_text)
        decode = partial(self._sampler.decode, skip_special_tokens=options.skip_special_tokens)
        return GrowingText(decode, options.stop, ends, before.tolist())

    def _prompt(self, asked: SamplerRequest[B], prompt: TokenArray) -> Json:
        """The prompt's tokens, which a chat's answer tells of beside its choices."""
        told = asked.body.return_token_ids and self.shape is CHAT
        return {"prompt_token_ids": prompt.tolist()} if told else {}

    async def _names(self, asked: SamplerRequest[B], *drawn: Completion | Piece) -> TokenTexts:
        """What tokens are called, where their log-probabilities are told."""
        wanted = set[int]().union(*map(known_tokens, drawn)) if asked.most is not None else ()
        texts = await self._sampler.token_texts(wanted) if wanted else {}
        return TokenTexts(texts, by_id=asked.body.return_tokens_as_token_ids)

    async def _grown(self, asked: SamplerRequest[B], choice: _Choice, piece: Piece) -> Json | None:
        """The delta of a choice that has grown; None where there is nothing to tell."""
        text = await choice.text.add(piece.token_ids.tolist())
        fields: Json = {}
        if asked.most is not None:
            names = await self._names(asked, piece)
            fields |= choice_logprobs(self.shape, asked, piece, names, choice.offset)
            choice.offset += sum(text_sizes(piece, names))
        if asked.body.return_token_ids:
            fields["token_ids"] = piece.token_ids.tolist()
        if not text and not fields:
            return None
        return self._delta(asked, choice, text, fields)

    async def _ended(
        self, asked: SamplerRequest[B], choice: _Choice, completion: Completion
    ) -> Json:
        """The last delta of a choice."""
        said = len(said_tokens(completion))
        rest = await choice.text.end(said, completion.stop_text)
        return self._delta(asked, choice, rest, choice_end(completion))

    def _delta(self, asked: SamplerRequest[B], choice: _Choice, text: str, fields: Json) -> Json:
        first, choice.begun = not choice.begun, True
        if first and asked.body.return_token_ids and self.shape is TEXT:
            fields = {**fields, "prompt_token_ids": choice.prompt.tolist()}
        return self.shape.delta(choice.index, text, first=first, **fields)


class ChatEndpoint(SamplerEndpoint[ChatBody]):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"
    summary = "Chat completions, as OpenAI's API"
    shape = CHAT

    def ask(self, value: Json) -> SamplerRequest[ChatBody]:
        """What a body's JSON asks for, in the sampler's terms."""
        return chat_request(read_body(ChatBody, value))


class TextEndpoint(SamplerEndpoint[CompletionBody]):
    """POST /v1/completions."""

    path = "/v1/completions"
    summary = "Text completions, as OpenAI's API"
    shape = TEXT

    def ask(self, value: Json) -> SamplerRequest[CompletionBody]:
        """What a body's JSON asks for, in the sampler's terms."""
        return text_request(read_body(CompletionBody, value), self._limits)


@dataclass(frozen=True, slots=True, eq=False)
class _Arrived:
    """A part of an item's completion, or all of it, as the sampler has drawn it."""

    item: int
    prompt: TokenArray
    part: Piece | Drawn
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it was told."""

    @property
    def completion(self) -> int:
        """Which of the item's completions."""
        return self.part.completion.index if isinstance(self.part, Drawn) else self.part.index


@dataclass(slots=True, eq=False)
class _Choice:
    """What was told of a choice of a stream."""

    index: int
    text: GrowingText
    prompt: TokenArray
    begun: bool = False
    offset: int = 0
    """Characters of the tokens whose log-probabilities were told."""
