"""Scores items: resolves, reserves, encodes, computes, normalises, activates.

What the gRPC and the HTTP side have in common, in terms of the domain alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import ParamSpec, TypeVar

from guerdon.data import all_texts
from guerdon.reward.counting import ScoringCall
from guerdon.reward.encoding.comparisons import scores_of_candidates
from guerdon.reward.judge.judge import Judge
from guerdon.reward.metrics import RewardMetrics
from guerdon.reward.models.registry import Registry
from guerdon.reward.scheduling.calls import ItemResult
from guerdon.reward.scheduling.dispatcher import Dispatcher
from guerdon.reward.scoring.fair_pool import FairPool
from guerdon.reward.scoring.judging import Judging
from guerdon.reward.types import (
    Activation,
    Conversation,
    Dropped,
    EncodedItem,
    ForeignText,
    FormattedText,
    Message,
    ModelInfo,
    ModelKind,
    PlainText,
    ResponseScore,
    RewardModel,
    ScoreItem,
    ScoreOptions,
    TokenArray,
)
from guerdon.serving.access.identity import current_caller
from guerdon.serving.errors import (
    ComputeFailed,
    InvalidRequest,
    PermissionDenied,
    TooLarge,
    Unsupported,
)

P = ParamSpec("P")
R = TypeVar("R")

_INLINE_BYTES = 16 * 1024
"""Messages up to this size are converted on the event loop: it takes a millisecond or less."""
_BYTES_PER_TOKEN_ID = 4
_ENCODE_CHUNK = 16
"""Items that one job encodes: a large request leaves the threads to others in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of a call and what made them."""

    info: ModelInfo
    options: ScoreOptions
    items: list[list[ResponseScore]]
    """Scores in the order of the request; `score` is normalised and activated as asked."""
    queue_seconds: float
    tokenize_seconds: float
    compute_seconds: float

    @property
    def reply_size(self) -> int:
        """About the bytes of the reply, for `Scorer.off_loop`."""
        return 64 * sum(map(len, self.items))

    def ranking(self, top_n: int = 0) -> list[int]:
        """Places of the first item's responses, best first; equal scores keep their order."""
        scores = self.items[0]
        order = sorted(range(len(scores)), key=lambda i: -scores[i].score)
        return order[:top_n] if top_n else order


Locate = Callable[[int, InvalidRequest], InvalidRequest]
"""Gives an item's error, whose field is below the item, the field's path in the request; called
with the item's place."""


def in_items(place: int, error: InvalidRequest) -> InvalidRequest:
    """The error of a request with a list of items."""
    return error.under(f"items[{place}]")


def in_item(_place: int, error: InvalidRequest) -> InvalidRequest:
    """The error of an item of a stream."""
    return error.under("item")


def in_ranking(_place: int, error: InvalidRequest) -> InvalidRequest:
    """The error of a request that holds one prompt and its candidates itself."""
    field = error.field
    if field.startswith("responses"):
        field = field.replace("responses", "candidates", 1)
    return InvalidRequest(field, error.reason)


class Scorer:
    """Scores items with the registry's models through the dispatcher.

    Args:
        threads: threads that convert and tokenise, so that the event loop stays free.
    """

    def __init__(
        self, registry: Registry, dispatcher: Dispatcher, metrics: RewardMetrics, *, threads: int
    ) -> None:
        self._registry = registry
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._pool = FairPool(threads)
        self._judging = Judging(metrics)

    def end_judging(self) -> None:
        """Fail what judges are still asked about: the server stops."""
        self._judging.stop()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()

    async def off_loop(
        self, size: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function here if its input is small, in a thread if it is `size` bytes large."""
        if size <= _INLINE_BYTES:
            return function(*args, **kwargs)
        run = partial(function, *args, **kwargs)
        return await self._pool.run(current_caller(), size, run)

    async def score(
        self,
        call: ScoringCall,
        spec: str,
        items: Sequence[ScoreItem],
        options: ScoreOptions,
        locate: Locate = in_items,
    ) -> Scored:
        """Score items with one revision of a model.

        Args:
            call: gets the revision that it was resolved to.
            spec: a name, an alias, or `name@revision`.
            locate: names the fields at fault as the request has them. Only `in_ranking` lets a
                model that compares have the responses.

        Raises:
            ServiceError: whatever stops it.
        """
        _check_class(call, options)
        revision = self._registry.resolve(spec)
        with revision.lease() as model:
            call.info = model.info
            _check_options(model.info, options)
            if model.info.ranks_only and locate is not in_ranking:
                raise Unsupported(
                    f"model {model.info.name!r} compares answers with each other and has no score "
                    "for one: rank them instead"
                )
            if isinstance(model, Judge):
                scores, read, judged = await self._judge(call, model, items, locate)
                return Scored(
                    info=model.info,
                    options=options,
                    items=_finish(model.info, options, scores),
                    queue_seconds=0.0,
                    tokenize_seconds=read,
                    compute_seconds=judged,
                )
            with self._dispatcher.reserve(
                model_name=model.info.name,
                priority=options.priority,
                text_bytes=sum(map(_text_bytes, items)),
                deadline=call.deadline,
                caller=call.caller,
                most=_most_tokens(model.info, items),
            ) as ticket:
                started = time.monotonic()
                encoded = await self._encode(call, model, items, options, locate)
                tokenize = time.monotonic() - started
                results = await self._dispatcher.score(ticket, revision.key, model, encoded)
            results = [_of_responses(*both) for both in zip(encoded, results, strict=True)]
            tokens = sum(item.tokens for item in encoded)
            # Once the reply is on its way: counting is not worth the caller's time.
            asyncio.get_running_loop().call_soon(self._observe, call, tokenize, tokens, results)
            return Scored(
                info=model.info,
                options=options,
                items=_finish(model.info, options, [result.scores for result in results]),
                queue_seconds=max(result.queue_seconds for result in results),
                tokenize_seconds=tokenize,
                compute_seconds=max(result.compute_seconds for result in results),
            )

    async def rank(
        self, call: ScoringCall, spec: str, item: ScoreItem, options: ScoreOptions
    ) -> Scored:
        """Score the candidates of one item, by a pairwise model too; see `score`."""
        try:
            return await self.score(call, spec, [item], options, in_ranking)
        except TooLarge as error:
            raise InvalidRequest("candidates", error.reason) from error

    async def _encode(
        self,
        call: ScoringCall,
        model: RewardModel,
        items: Sequence[ScoreItem],
        options: ScoreOptions,
        locate: Locate,
    ) -> list[EncodedItem]:
        """Tokenise in the threads."""

        def encode(item: ScoreItem) -> EncodedItem:
            encoded = model.encode(
                item, options.truncation, reject_control_tokens=options.reject_control_tokens
            )
            _check_dropped(encoded, options)
            return encoded

        return await self._read(call, items, locate, encode)

    async def _judge(
        self, call: ScoringCall, judge: Judge, items: Sequence[ScoreItem], locate: Locate
    ) -> tuple[list[list[ResponseScore]], float, float]:
        """The scores by a judge, and the seconds of reading the items and of judging."""
        started = time.monotonic()
        asked = await self._read(call, items, locate, judge.questions)
        read = time.monotonic()
        scores = await self._judging.judge(call, judge, asked)
        return scores, read - started, time.monotonic() - read

    async def _read(
        self,
        call: ScoringCall,
        items: Sequence[ScoreItem],
        locate: Locate,
        function: Callable[[ScoreItem], R],
    ) -> list[R]:
        """A function of each item, in the threads; the error of an item names its place."""

        def read(start: int) -> list[R]:
            found = []
            for place in range(start, min(start + _ENCODE_CHUNK, len(items))):
                try:
                    found.append(function(items[place]))
                except InvalidRequest as error:
                    raise locate(place, error) from error
            return found

        found: list[R] = []
        for start in range(0, len(items), _ENCODE_CHUNK):
            size = sum(map(_text_bytes, items[start : start + _ENCODE_CHUNK]))
            found += await self._pool.run(call.caller, size, partial(read, start))
        return found

    def _observe(
        self, call: ScoringCall, tokenize: float, tokens: int, results: Sequence[ItemResult]
    ) -> None:
        assert call.info is not None
        model = (call.info.name, call.info.revision_label)
        classed = (*model, call.priority.value)
        metrics = self._metrics
        metrics.tokenize_seconds.labels(*classed).observe(tokenize)
        metrics.caller_tokens.labels(call.caller.name, call.priority.value).inc(tokens)
        metrics.sequences.labels(*classed).inc(sum(len(result.scores) for result in results))
        queue = metrics.queue_seconds.labels(*classed)
        compute = metrics.compute_seconds.labels(*classed)
        histogram = metrics.scores.labels(*model)
        truncated = 0
        for result in results:
            queue.observe(result.queue_seconds)
            compute.observe(result.compute_seconds)
            for score in result.scores:
                histogram.observe(score.score)
                truncated += score.truncated_tokens > 0
        metrics.truncations.labels(*model).inc(truncated)


def _of_responses(item: EncodedItem, result: ItemResult) -> ItemResult:
    """A result with a score for each response, and what is known of the response's text."""
    if item.candidates:  # the scores are of comparisons
        return dataclasses.replace(result, scores=scores_of_candidates(item, result.scores))
    known = zip_longest(result.scores, item.dropped, item.hashes)
    scores = [
        dataclasses.replace(score, dropped=dropped or (), tokens_hash=tokens_hash or "")
        for score, dropped, tokens_hash in known
    ]
    return dataclasses.replace(result, scores=scores)


def _check_dropped(item: EncodedItem, options: ScoreOptions) -> None:
    """Refuse what the chat template shows in part, where that is asked for."""
    if not options.reject_dropped_text:
        return
    for place, dropped in enumerate(item.dropped):
        if dropped:
            raise InvalidRequest(
                "prompt" if dropped[0] is not Dropped.ANSWER_REASONING else f"responses[{place}]",
                f"has text that the chat template leaves out: {', '.join(dropped)}",
            )


def _text_bytes(item: ScoreItem) -> int:
    """Bytes of an item's text, the prompt once; a token id counts as four."""
    prompt = item.prompt
    if isinstance(prompt, Conversation):
        size = _conversation_bytes(prompt)
    elif isinstance(prompt, FormattedText | PlainText | ForeignText):
        size = _count_bytes(prompt.text)
    else:
        size = _count_bytes(prompt)
    return size + sum(map(_count_bytes, item.responses))


def _count_bytes(text: str | Message | TokenArray) -> int:
    if isinstance(text, dict):
        return _conversation_bytes(Conversation((text,)))
    return len(text.encode()) if isinstance(text, str) else _BYTES_PER_TOKEN_ID * len(text)


def _conversation_bytes(conversation: Conversation) -> int:
    return sum(len(text.encode()) for text in all_texts(conversation))


def _most_tokens(info: ModelInfo, items: Sequence[ScoreItem]) -> int:
    """The most tokens of items that are not refused for their length."""
    counts = (len(item.responses) for item in items)
    pairwise = info.kind is ModelKind.PAIRWISE
    return info.max_tokens * sum(n * (n - 1) if pairwise else n for n in counts)


def _check_class(call: ScoringCall, options: ScoreOptions) -> None:
    allowed = call.caller.classes
    if options.priority.value not in allowed:
        raise PermissionDenied(
            f"options.priority: the caller {call.caller.name!r} may ask for "
            f"{' or '.join(sorted(allowed))} alone, and this is {options.priority.value}"
        )


def _check_options(info: ModelInfo, options: ScoreOptions) -> None:
    if options.normalize and (info.mean is None or info.std is None):
        raise Unsupported(
            f"model {info.name!r} has no training mean and standard deviation to normalise with"
        )
    if options.activation is not Activation.NONE and info.probability:
        raise Unsupported(
            f"model {info.name!r} gives probabilities already, of which {options.activation.value} "
            "would make other numbers"
        )


def _finish(
    info: ModelInfo, options: ScoreOptions, items: Sequence[Sequence[ResponseScore]]
) -> list[list[ResponseScore]]:
    """Normalise, then activate; a score that is not a finite number fails the call."""
    plain = options.activation is Activation.NONE and not options.normalize
    finished: list[list[ResponseScore]] = []
    for scores in items:
        if not plain:
            scores = [
                dataclasses.replace(s, score=transform(s.score, info, options)) for s in scores
            ]
        # Also after they were normalised: a small std can make a large score overflow.
        if not all(math.isfinite(score.score) for score in scores):
            raise ComputeFailed(f"model {info.name!r} gave a score that is not a finite number")
        finished.append(list(scores))
    return finished


def transform(raw: float, info: ModelInfo, options: ScoreOptions) -> float:
    """A raw score, normalised and activated as asked."""
    if options.normalize:
        assert info.mean is not None
        assert info.std is not None
        raw = (raw - info.mean) / info.std
    return sigmoid(raw) if options.activation is Activation.SIGMOID else raw


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow, for any finite x."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)
