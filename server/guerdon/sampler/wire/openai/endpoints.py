"""Chat and text completions of OpenAI's API, drawn by the sampler."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ClassVar, TypeVar

from fastapi.responses import JSONResponse, Response

from guerdon.sampler.sampling import Drawn, Sampler, said_tokens
from guerdon.sampler.types import Completion, GenerateRequest, Piece, PolicyEngine
from guerdon.sampler.wire.openai.growing_text import GrowingText
from guerdon.sampler.wire.openai.logprobs import Place, chat_logprobs, places_of, text_logprobs
from guerdon.sampler.wire.openai.requests import chat_request, openai_field, text_request
from guerdon.serving.calls import Call
from guerdon.serving.errors import InvalidRequest, NotFound
from guerdon.serving.openai.bodies import ChatBody, CompletionBody, SamplingBody
from guerdon.serving.openai.events import event
from guerdon.serving.openai.replies import CHAT, TEXT, Envelope, Shape, usage
from guerdon.serving.openai.routes import Endpoint
from guerdon.serving.wire.convert import field_values

B = TypeVar("B", bound=SamplingBody)
Json = dict[str, Any]


class SamplerEndpoint(Endpoint[Call, B]):
    """What both have in common.

    Args:
        name: what the policy is called.
    """

    shape: ClassVar[Shape]

    def __init__(self, sampler: Sampler, engine: PolicyEngine, name: str) -> None:
        self._sampler = sampler
        self._engine = engine
        self._name = name

    @abstractmethod
    def request(self, body: B) -> GenerateRequest:
        """What a body asks for, in the sampler's terms."""

    @abstractmethod
    def most_alternatives(self, body: B) -> int | None:
        """Likeliest tokens of each place that are told; None where no log-probabilities are."""

    @abstractmethod
    def logprobs(self, places: Sequence[Place], offset: int) -> Json:
        """A choice's log-probabilities, behind `offset` characters of its tokens."""

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error with OpenAI's name of its field."""
        return InvalidRequest(openai_field(error.field, chat=self.shape is CHAT), error.reason)

    async def answer(self, call: Call, body: B) -> Response:
        """All choices at once."""
        request = self._checked(body)
        drawn: list[Drawn] = []

        async def keep(one: Drawn) -> None:
            drawn.append(one)

        await self._sampler.draw(call, request, keep)
        drawn.sort(key=lambda one: (one.item, one.completion.index))
        choices = [await self._choice(body, one) for one in drawn]
        version = max(_version(one.completion) for one in drawn)
        whole = self._envelope(body).whole(
            choices, _usage(drawn), **_told(version), **_prompt_ids(body, drawn)
        )
        return JSONResponse(whole, headers={"x-guerdon-weight-version": str(version)})

    async def stream(self, call: Call, body: B) -> AsyncGenerator[bytes, None]:
        """Each choice as it grows."""
        request = self._checked(body)
        envelope = self._envelope(body)
        growing: dict[int, _Growing] = {}
        drawn: list[Drawn] = []
        async with self._drawing(call, request) as arriving:
            while (arrived := await arriving.get()) is not None:
                place, part = arrived
                index = place * body.n + _index(part)
                if index not in growing:
                    growing[index] = _Growing(self._text(request))
                choice: Json | None
                if isinstance(part, Drawn):
                    drawn.append(part)
                    choice = await self._ended(body, index, growing[index], part)
                else:
                    choice = await self._grown(body, index, growing[index], part)
                if choice is not None:
                    yield event(envelope.chunk(choice))
                arriving.task_done()
        if body.stream_options.include_usage:
            version = max(_version(one.completion) for one in drawn)
            yield event(envelope.chunk(usage=_usage(drawn), **_told(version)))

    @asynccontextmanager
    async def _drawing(
        self, call: Call, request: GenerateRequest
    ) -> AsyncGenerator[asyncio.Queue[tuple[int, Piece | Drawn] | None], None]:
        """What is drawn, as it arrives, and None at its end; leaving the block stops the drawing.

        A completion holds its room until all that has arrived of it was taken.
        """
        arriving: asyncio.Queue[tuple[int, Piece | Drawn] | None] = asyncio.Queue()

        async def hand_over(one: Drawn) -> None:
            arriving.put_nowait((one.item, one))
            await arriving.join()

        def grown(place: int, piece: Piece) -> None:
            arriving.put_nowait((place, piece))

        drawing = asyncio.create_task(self._sampler.draw(call, request, hand_over, grown))
        drawing.add_done_callback(lambda _: arriving.put_nowait(None))
        try:
            yield arriving
            await drawing  # raises what ended it
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})

    def _checked(self, body: B) -> GenerateRequest:
        names = {"", self._name, self._engine.info.model}
        if body.model not in names:
            raise NotFound(f"there is no model {body.model!r} here: the policy is {self._name!r}")
        return self.request(body)

    def _envelope(self, body: B) -> Envelope:
        return Envelope.new(self.shape, body.model or self._name)

    def _text(self, request: GenerateRequest) -> GrowingText:
        options = request.options
        ends = (*self._engine.info.eos_token_ids, *options.stop_token_ids)
        decode = partial(self._sampler.decode, skip_special_tokens=options.skip_special_tokens)
        return GrowingText(decode, options.stop, ends)

    async def _choice(self, body: B, one: Drawn) -> Json:
        completion, most = one.completion, self.most_alternatives(body)
        fields = _end(completion)
        if most is not None:
            places = await places_of(completion, self._sampler.decode, most)
            fields["logprobs"] = self.logprobs(places, 0)
        if body.return_token_ids:
            fields["token_ids"] = completion.token_ids.tolist()
        return self.shape.choice(one.item * body.n + completion.index, one.text, **fields)

    async def _grown(self, body: B, index: int, growing: _Growing, piece: Piece) -> Json | None:
        text = await growing.text.add(piece.token_ids.tolist())
        fields: Json = {}
        most = self.most_alternatives(body)
        if most is not None:
            places = await places_of(piece, self._sampler.decode, most)
            fields["logprobs"] = self.logprobs(places, growing.offset)
            growing.offset += sum(len(place.drawn.text) for place in places)
        if body.return_token_ids:
            fields["token_ids"] = piece.token_ids.tolist()
        if not text and not fields:
            return None
        first, growing.begun = not growing.begun, True
        return self.shape.delta(index, text, first=first, **fields)

    async def _ended(self, body: B, index: int, growing: _Growing, one: Drawn) -> Json:
        completion = one.completion
        said = len(said_tokens(completion))
        rest = await growing.text.end(said, stopped=bool(completion.stop_text))
        prompt = {"prompt_token_ids": one.prompt.tolist()} if body.return_token_ids else {}
        return self.shape.delta(index, rest, first=not growing.begun, **_end(completion), **prompt)


class ChatEndpoint(SamplerEndpoint[ChatBody]):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"
    body = ChatBody
    summary = "Chat completions, as OpenAI's API"
    shape = CHAT

    def request(self, body: ChatBody) -> GenerateRequest:
        """What a body asks for, in the sampler's terms."""
        return chat_request(body, self._engine.info)

    def most_alternatives(self, body: ChatBody) -> int | None:
        """Likeliest tokens of each place that are told; None where no log-probabilities are."""
        return body.top_logprobs if body.logprobs else None

    def logprobs(self, places: Sequence[Place], offset: int) -> Json:
        """A choice's log-probabilities."""
        return chat_logprobs(places)


class TextEndpoint(SamplerEndpoint[CompletionBody]):
    """POST /v1/completions."""

    path = "/v1/completions"
    body = CompletionBody
    summary = "Text completions, as OpenAI's API"
    shape = TEXT

    def request(self, body: CompletionBody) -> GenerateRequest:
        """What a body asks for, in the sampler's terms."""
        return text_request(body, self._engine.info)

    def most_alternatives(self, body: CompletionBody) -> int | None:
        """Likeliest tokens of each place that are told; None where no log-probabilities are."""
        return body.logprobs

    def logprobs(self, places: Sequence[Place], offset: int) -> Json:
        """A choice's log-probabilities, behind `offset` characters of its tokens."""
        return text_logprobs(places, offset)


class _Growing:
    """What has been told of a choice of a stream."""

    def __init__(self, text: GrowingText) -> None:
        self.text = text
        self.begun = False
        self.offset = 0
        """Characters of the tokens whose log-probabilities were told."""


def _index(part: Piece | Drawn) -> int:
    return part.completion.index if isinstance(part, Drawn) else part.index


def _version(completion: Completion) -> int:
    """The newest weights that had a part in it."""
    return max(span.version for span in completion.spans)


def _end(completion: Completion) -> Json:
    """Why a choice ended, and which weights drew it."""
    reason: str | int | None = completion.stop_text or None
    return {
        "finish_reason": completion.finish_reason.value,
        "stop_reason": reason,
        "guerdon": {"weight_versions": [field_values(span) for span in completion.spans]},
    }


def _told(version: int) -> Json:
    """The newest weights that had a part in an answer, also where OpenAI's clients look for it."""
    return {"system_fingerprint": f"weights-{version}", "guerdon": {"weight_version": version}}


def _prompt_ids(body: SamplingBody, drawn: Sequence[Drawn]) -> Json:
    if not body.return_token_ids:
        return {}
    prompts = {one.item: one.prompt.tolist() for one in drawn}
    return {"prompt_token_ids": prompts[0] if len(prompts) == 1 else list(prompts.values())}


def _usage(drawn: Sequence[Drawn]) -> Json:
    """Tokens of the prompts, each once, and of all completions."""
    prompts = {one.item: len(one.prompt) for one in drawn}
    return usage(sum(prompts.values()), sum(len(one.completion.token_ids) for one in drawn))
