"""Serves one call: check it, admit it, tokenise, let the engine draw, hand completions over.

    request ─ checks ─ admission ─▶ a task per item ─▶ engine ─▶ the caller, in any order

When the call ends early (its deadline, the caller's leaving, an item that failed), its tasks
end, and a task that ends tells the engine to stop drawing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from guerdon.sampler import checks
from guerdon.sampler.admission import Admission, Ticket
from guerdon.sampler.metrics import SamplerMetrics
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.tokenizer import Tokenizer
from guerdon.sampler.types import (
    Completion,
    FinishReason,
    GenerateRequest,
    Grown,
    Piece,
    PolicyEngine,
)
from guerdon.serving.access.identity import current_caller
from guerdon.serving.calls import Call
from guerdon.serving.errors import ComputeFailed, DeadlinePassed, Outdated, Overloaded
from guerdon.serving.prompts import TokenArray
from guerdon.serving.threads import OneThread

P = ParamSpec("P")
R = TypeVar("R")

_CONTEXT = 8
"""Tokens of the prompt behind which a text that goes on with it is decoded."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion, and what it belongs to."""

    item: int
    id: str
    prompt: TokenArray
    completion: Completion
    text: str = ""


HandOver = Callable[[Drawn], Awaitable[None]]
"""Gets each completion, one at a time."""


class Sampler:
    """Draws completions through the engine, within the limits.

    Args:
        max_in_flight: most completions running and waiting.
    """

    def __init__(
        self,
        engine: PolicyEngine,
        tokenizer: Tokenizer,
        metrics: SamplerMetrics,
        limits: RequestLimits,
        *,
        max_in_flight: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._limits = limits
        self.admission = Admission(max_in_flight)
        # One thread: a tokenizer's calls share state.
        self._thread = OneThread("tokenizer")

    def close(self) -> None:
        """Stop the thread."""
        self._thread.close()

    async def off_loop(
        self, size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function here if its input is small, in the thread if it is `size` bytes large."""
        return await self._thread.off_loop(size, function, *args, **kwargs)

    async def decode(
        self, *parts: TokenArray, skip_special_tokens: bool = False
    ) -> tuple[str, ...]:
        """The text of each of several parts of completions."""
        decode = partial(self._tokenizer.decode, skip_special_tokens=skip_special_tokens)
        return await self._thread.run(lambda: tuple(map(decode, parts)))

    async def token_texts(self, tokens: Collection[int]) -> dict[int, str]:
        """The text of each token by itself, with the space that it begins with."""
        return await self._thread.run(
            lambda: {token: self._tokenizer.decode_token(token) for token in tokens}
        )

    async def draw(
        self,
        call: Call,
        request: GenerateRequest,
        hand_over: HandOver,
        grown: Callable[[int, TokenArray, Piece], None] | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over every completion that the request asks for, each as it ends.

        Args:
            grown: gets an item's place, its prompt, and each piece of its completions.
            begun: called when the request is accepted, before anything is drawn.

        Raises:
            ServiceError: whatever stops it: a wrong field, weights that are too old, no room,
                the deadline, an engine that failed or was told to begin a new history.
        """
        info = self._engine.info
        checks.check_request(request, self._limits, info.vocab_size, info.max_tokens)
        self._check_version(request)
        if call.late:
            raise DeadlinePassed("the deadline had passed when the request arrived")
        ticket = self._reserve(request)
        try:
            async with asyncio.timeout(_seconds_left(call)):
                prompts = await self._encode(request)
                self._check_version(request)  # again: an update may have begun a new history
                self._metrics.prompt_tokens.inc(sum(map(len, prompts)))
                begun()
                await self._draw_all(call, request, prompts, ticket, hand_over, grown)
        except TimeoutError as error:
            raise DeadlinePassed("the deadline passed before all completions were drawn") from error
        finally:
            self._close(call, ticket)
        self._metrics.generate_seconds.observe(call.elapsed())

    def _check_version(self, request: GenerateRequest) -> None:
        serving = self._engine.version
        if serving < request.min_version:
            raise Outdated(
                f"the sampler serves version {serving}, older than {request.min_version}: "
                "publish again"
            )

    def _reserve(self, request: GenerateRequest) -> Ticket:
        try:
            return self.admission.reserve(
                request.completions,
                now=time.monotonic(),
                caller=current_caller(),
                tokens_each=request.options.max_tokens,
            )
        except Overloaded:
            self._metrics.shed.inc(request.completions)
            raise

    async def _encode(self, request: GenerateRequest) -> list[TokenArray]:
        """The prompts' tokens; texts are tokenised in the thread."""
        info = self._engine.info
        prompts = []
        for place, item in enumerate(request.items):
            if isinstance(item.prompt, np.ndarray):
                prompts.append(item.prompt)  # looked at by `check_request`
                continue
            field = f"items[{place}].prompt"
            tokens = await self._thread.run(self._tokenizer.encode, item.prompt, field)
            checks.check_tokens(tokens, field, info.vocab_size)
            checks.check_room(tokens, field, info.max_tokens)
            prompts.append(tokens)
        return prompts

    async def _draw_all(
        self,
        call: Call,
        request: GenerateRequest,
        prompts: Sequence[TokenArray],
        ticket: Ticket,
        hand_over: HandOver,
        grown: Callable[[int, TokenArray, Piece], None] | None,
    ) -> None:
        one_at_a_time = asyncio.Lock()

        async def draw(place: int) -> None:
            item, prompt = request.items[place], prompts[place]
            told = None if grown is None else partial(grown, place, prompt)
            drawing = self._completions(request, place, prompt, told)
            async with contextlib.aclosing(drawing):
                async for completion in drawing:
                    text = await self._text(request, place, prompt, completion)
                    async with one_at_a_time:
                        await hand_over(Drawn(place, item.id, prompt, completion, text))
                    # Its room is free now that it was handed over: who is slow to take
                    # completions makes nobody's memory grow.
                    self.admission.finished(ticket, now=time.monotonic())
                    self._observe(call, completion)

        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(request.items)):
                    group.create_task(draw(place))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _completions(
        self, request: GenerateRequest, place: int, prompt: TokenArray, grown: Grown | None
    ) -> AsyncGenerator[Completion, None]:
        """All of one item's, each looked at; the engine stops when this is closed."""
        item = request.items[place]
        missing = set(range(item.n))
        drawn = self._engine.generate(
            prompt, request.options, n=item.n, seed=item.seed, grown=grown
        )
        async with contextlib.aclosing(drawn):
            async for completion in drawn:
                check_completion(completion)
                if completion.index not in missing:
                    raise ComputeFailed(f"the engine gave completion {completion.index} twice")
                missing.remove(completion.index)
                yield completion
        if missing:
            raise ComputeFailed(
                f"the engine ended after {item.n - len(missing)} of {item.n} completions"
            )

    async def _text(
        self, request: GenerateRequest, place: int, prompt: TokenArray, completion: Completion
    ) -> str:
        if not request.return_text:
            return ""
        options, drawn = request.options, request.items[place].drawn
        before, own = split_prompt(prompt, drawn, continues=options.continues_text)
        whole = np.concatenate([before, own, said_tokens(completion)])
        known, text = await self.decode(
            before, whole, skip_special_tokens=options.skip_special_tokens
        )
        text = text[len(known) :]
        return text[: found_stop(text, (completion.stop_text,))] if completion.stop_text else text

    def _observe(self, call: Call, completion: Completion) -> None:
        metrics = self._metrics
        metrics.completions.labels(completion.finish_reason.value).inc()
        metrics.completion_seconds.observe(call.elapsed())
        metrics.completion_tokens.observe(len(completion.token_ids))
        metrics.generated_tokens.inc(len(completion.token_ids))
        if len(completion.spans) > 1:
            metrics.mixed.inc()

    def _close(self, call: Call, ticket: Ticket) -> None:
        """Give the room back; count what was not handed over by why."""
        if ticket.completions:
            error = sys.exc_info()[1]
            if isinstance(error, asyncio.CancelledError | DeadlinePassed):
                reason = "expired" if call.late else "cancelled"
            else:
                reason = "failed"
            self._metrics.dropped.labels(reason).inc(ticket.completions)
        self.admission.close(ticket, now=time.monotonic())


def split_prompt(
    prompt: TokenArray, drawn: int, *, continues: bool
) -> tuple[TokenArray, TokenArray]:
    """A prompt's last tokens: those behind which the text is decoded, and those that begin it.

    Args:
        drawn: tokens that were drawn before.
        continues: whether the text goes on with that of the tokens before.
    """
    start = len(prompt) - drawn
    return prompt[max(0, start - _CONTEXT) : start] if continues else prompt[:0], prompt[start:]


def said_tokens(completion: Completion) -> TokenArray:
    """A completion's tokens without the one that ended it, which is no part of what it says."""
    ended = completion.finish_reason is FinishReason.STOP and not completion.stop_text
    return completion.token_ids[:-1] if ended else completion.token_ids


def found_stop(text: str, stops: Sequence[str]) -> int:
    """Place of the first of the texts that end a completion; the text's length if none does."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))


def check_completion(completion: Completion) -> None:
    """Refuse to hand over what no trainer could use.

    Raises:
        ComputeFailed: nothing was drawn, something has no log-probability, one is not a finite
            number, or the spans are not over all tokens.
    """
    count = len(completion.token_ids)
    if count == 0:
        raise ComputeFailed("the engine gave a completion without a token")
    if len(completion.logprobs) != count:
        raise ComputeFailed(
            f"the engine gave {len(completion.logprobs)} log-probabilities for {count} tokens"
        )
    bad = np.flatnonzero(~np.isfinite(completion.logprobs))
    if bad.size:
        raise ComputeFailed(
            f"the engine gave {completion.logprobs[bad[0]]} as the log-probability of token "
            f"{bad[0]}: not a finite number"
        )
    end = 0
    for span in completion.spans:
        if span.start != end or span.end <= span.start:
            raise ComputeFailed("the engine gave version spans with a gap")
        end = span.end
    if end != count:
        raise ComputeFailed(f"the engine gave version spans over {end} of {count} tokens")


def _seconds_left(call: Call) -> float | None:
    return None if call.deadline is None else max(0.0, call.deadline - time.monotonic())
