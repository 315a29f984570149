"""A policy engine whose completions are a formula of the weights, and which can be told to
misbehave: what the sampler's service is tested against.

The weights are one number for each version: the sum of the bytes of what was published. So a
completion says which weights drew it, and a test can work out what it must be.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from guerdon.data import message_text
from guerdon.sampler.types import (
    Completion,
    EngineInfo,
    FinishReason,
    Grown,
    NcclSource,
    Piece,
    PlainText,
    PublishOrder,
    PublishResult,
    SamplingOptions,
    Staging,
    TensorSpec,
    VersionSpan,
)
from guerdon.serving.errors import (
    ComputeFailed,
    Interrupted,
    InvalidRequest,
    Unavailable,
    UpdateRefused,
)
from guerdon.serving.prompts import FormattedText, Prompt, TokenArray

VOCABULARY = 1000
MAX_TOKENS = 256
END = 2
HELD_TOKENS = 4
MODEL = (TensorSpec("a.weight", "float32", (4, 2)), TensorSpec("b.weight", "bfloat16", (3,)))
"""The tensors that the policy has."""
BYTES = (32, 6)


def token_of(weights: int, prompt: Sequence[int], sample: int, place: int, seed: int) -> int:
    """The token that is drawn; never the end token."""
    text = f"{weights} {list(map(int, prompt))} {sample} {place} {seed}"
    return 3 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % (VOCABULARY - 3)


def logprob_of(token: int, temperature: float) -> float:
    """Its log-probability."""
    return -math.log(1 + token) / max(temperature, 1.0)


def length_of(prompt: Sequence[int], sample: int) -> int:
    """Tokens of a completion that ends by itself."""
    return 3 + (int(prompt[0]) + sample) % 5


def tokens_of(prompt: Sequence[int], sample: int, seed: int = 0) -> list[int]:
    """What the first weights draw to the end, the end token included."""
    length = length_of(prompt, sample)
    return [token_of(0, prompt, sample, i, seed) for i in range(length - 1)] + [END]


def text_of(tokens: Sequence[int]) -> str:
    """The text of tokens that end with the end token, as `WordTokenizer` writes it."""
    return " ".join(map(str, tokens[:-1]))


@dataclass
class Behaviour:
    """What the engine does; changed by tests while it runs."""

    seconds_per_token: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """No token is drawn while it is not set."""
    held_seed: int | None = None
    """Completions of this seed wait for `release` when they have `HELD_TOKENS` tokens."""
    release: asyncio.Event = field(default_factory=asyncio.Event)
    interrupts: bool = False
    """Every completion is ended by an update that was refused, once it has a token."""
    fails: bool = False
    nonfinite: bool = False
    loses: bool = False
    """End before all completions have come."""
    publish_gate: asyncio.Event = field(default_factory=asyncio.Event)
    publish_error: Exception | None = None
    start_error: Exception | None = None
    aborted: int = 0
    """Completions that somebody stopped waiting for."""
    drawn: int = 0
    """Completions that have come to their end."""
    tokens: int = 0
    """Tokens that were drawn, of all completions."""
    staged: int = 0
    """Stagings that are open."""

    def __post_init__(self) -> None:
        self.gate.set()
        self.publish_gate.set()


@dataclass(frozen=True)
class FormulaWeights:
    """Checked bytes."""

    value: int
    sha256: bytes


class FormulaStaging:
    """Keeps the bytes; the same checks as a real one."""

    def __init__(self, engine: FormulaEngine, sizes: Sequence[int]) -> None:
        self._engine = engine
        self._sizes = sizes
        self._parts = [bytearray() for _ in sizes]
        self._open = True
        engine.behaviour.staged += 1

    async def write(self, tensor: int, offset: int, data: bytes) -> None:
        if tensor >= len(self._sizes):
            raise InvalidRequest("chunk.tensor", f"is {tensor}, there are {len(self._sizes)}")
        name = MODEL[tensor].name
        if any(len(p) < s for p, s in zip(self._parts[:tensor], self._sizes, strict=False)):
            raise InvalidRequest("chunk.tensor", f"{name} came before the one before it was whole")
        if offset != len(self._parts[tensor]):
            raise InvalidRequest("chunk.offset", f"of {name} is {offset}")
        if offset + len(data) > self._sizes[tensor]:
            raise InvalidRequest("chunk.data", f"goes past the end of {name}")
        self._parts[tensor] += data

    async def finish(self, sha256: bytes) -> FormulaWeights:
        for spec, part, size in zip(MODEL, self._parts, self._sizes, strict=True):
            if len(part) != size:
                raise UpdateRefused(f"{spec.name} lacks {size - len(part)} bytes")
        whole = b"".join(self._parts)
        if hashlib.sha256(whole).digest() != sha256:
            raise UpdateRefused("the checksum is another one")
        return FormulaWeights(sum(whole), sha256)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._engine.behaviour.staged -= 1


class FormulaEngine:
    """Implements `guerdon.sampler.types.PolicyEngine`."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.info = EngineInfo(
            model="formula",
            dtype="float32",
            max_tokens=MAX_TOKENS,
            vocab_size=VOCABULARY,
            eos_token_ids=(END,),
        )
        self.version = 0
        self.sha256 = b""
        self.weights = 0
        self.running = 0
        self.stopped = False
        self._dead = asyncio.Event()
        self._reason = ""
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._history = 0

    async def start(self) -> None:
        if self.behaviour.start_error is not None:
            raise self.behaviour.start_error

    async def shutdown(self) -> None:
        self.stopped = True

    def die(self, reason: str) -> None:
        """As if the engine's process had been killed."""
        self._reason = reason
        self._dead.set()

    async def wait_dead(self) -> str:
        await self._dead.wait()
        return self._reason

    def load(self) -> tuple[int, int]:
        return (0, self.running) if not self._resumed.is_set() else (self.running, 0)

    async def generate(
        self,
        prompt: TokenArray,
        options: SamplingOptions,
        *,
        n: int,
        seed: int | None,
        grown: Grown | None = None,
    ) -> AsyncGenerator[Completion, None]:
        self.running += n
        left = n
        drawing: list[asyncio.Future[Completion]] = []
        try:
            drawing = [
                asyncio.ensure_future(self._draw(prompt, options, i, seed or 0, grown))
                for i in range(n)
            ]
            for finished in asyncio.as_completed(drawing):
                completion = await finished
                if self.behaviour.loses and left == 1:
                    return
                self.running -= 1
                left -= 1
                yield completion
        finally:
            # Before anything is awaited: another item that fails may cancel this one here too.
            self.running -= left
            self.behaviour.aborted += left
            for task in drawing:
                task.cancel()
            await asyncio.gather(*drawing, return_exceptions=True)

    async def _draw(
        self, prompt: TokenArray, options: SamplingOptions, i: int, seed: int, grown: Grown | None
    ) -> Completion:
        length = MAX_TOKENS if options.ignore_eos else length_of(prompt.tolist(), i)
        most = min(options.max_tokens, MAX_TOKENS - len(prompt))
        tokens: list[int] = []
        versions: list[int] = []
        history, stop = self._history, ""
        while len(tokens) < min(length, most) and not stop:
            await asyncio.sleep(self.behaviour.seconds_per_token)
            await self.behaviour.gate.wait()
            await self._resumed.wait()
            if seed == self.behaviour.held_seed and len(tokens) == HELD_TOKENS:
                await self.behaviour.release.wait()
            if self._dead.is_set():
                raise Unavailable("the engine died")
            if self.behaviour.fails:
                raise ComputeFailed("the engine failed")
            if self.behaviour.interrupts and tokens:
                raise Interrupted("an update that was refused ended the generation")
            if history != self._history:
                raise Interrupted("an update with reset ended the generation")
            versions.append(self.version)
            last = len(tokens) + 1 == length
            drawn = token_of(self.weights, prompt.tolist(), i, len(tokens), seed)
            tokens.append(END if last else drawn)
            self.behaviour.tokens += 1
            said = " ".join(map(str, tokens))
            stop = next((text for text in options.stop if text in said), "")
            if grown is not None:
                grown(piece_of(i, tokens[-1:], options))
        logprobs = [logprob_of(t, options.temperature) for t in tokens]
        if self.behaviour.nonfinite:
            logprobs[-1] = float("nan")
        self.behaviour.drawn += 1
        return Completion(
            index=i,
            token_ids=np.asarray(tokens, dtype=np.int32),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            finish_reason=FinishReason.STOP if stop or tokens[-1] == END else FinishReason.LENGTH,
            spans=spans_of(versions),
            stop_text=stop,
            alternatives=piece_of(i, tokens, options).alternatives,
        )

    async def stage_stream(self, specs: tuple[TensorSpec, ...]) -> Staging:
        wrong = [spec.name for spec in specs if spec not in MODEL]
        missing = [spec.name for spec in MODEL if spec.name not in {s.name for s in specs}]
        if wrong or missing:
            raise UpdateRefused(f"not the model's: {wrong}; missing: {missing}")
        return FormulaStaging(self, BYTES)

    async def stage_files(self, files: Sequence[Path], specs: tuple[TensorSpec, ...]) -> Staging:
        staging = FormulaStaging(self, BYTES)
        data = b"".join(file.read_bytes() for file in files)
        await staging.write(0, 0, data[:32])
        await staging.write(1, 0, data[32:])
        return staging

    async def stage_nccl(self, source: NcclSource, specs: tuple[TensorSpec, ...]) -> Staging:
        raise UpdateRefused("there is no GPU here")

    async def publish(self, staged: object, order: PublishOrder) -> PublishResult:
        assert isinstance(staged, FormulaWeights)
        self._resumed.clear()
        try:
            await self.behaviour.publish_gate.wait()
            if self.behaviour.publish_error is not None:
                raise self.behaviour.publish_error
            self.weights, self.version, self.sha256 = staged.value, order.version, staged.sha256
            self._history += order.reset
        finally:
            self._resumed.set()
        tokens = sum(len(canary.logprobs) for canary in order.canaries)
        return PublishResult(
            canary_tokens=tokens,
            canary_mean_difference=1e-6 * bool(tokens),
            canary_max_difference=2e-6 * bool(tokens),
            load_seconds=0.1,
            canary_seconds=0.05,
            pause_seconds=0.2,
        )


class WordTokenizer:
    """A token for each word; what it decodes is the ids."""

    def encode(self, prompt: Prompt | PlainText, field: str) -> TokenArray:
        if isinstance(prompt, np.ndarray):
            return prompt
        first = [1] if isinstance(prompt, PlainText) and prompt.add_special_tokens else []
        if isinstance(prompt, FormattedText | PlainText):
            text = prompt.text
        elif isinstance(prompt, str):
            text = prompt
        else:
            if any(turn["role"] == "nobody" for turn in prompt.messages):
                raise InvalidRequest(f"{field}.conversation", "is refused by the chat template")
            text = " ".join(message_text(turn) for turn in prompt.messages)
        return np.asarray(first + [len(word) for word in text.split()], dtype=np.int32)

    def decode(self, tokens: TokenArray, *, skip_special_tokens: bool = False) -> str:
        return " ".join(str(t) for t in tokens.tolist() if t != END or not skip_special_tokens)

    def decode_token(self, token: int) -> str:
        return str(token)


def piece_of(index: int, tokens: Sequence[int], options: SamplingOptions) -> Piece:
    """Tokens that were drawn, each followed by the next ids at one less each."""
    logprobs = [logprob_of(t, options.temperature) for t in tokens]
    return Piece(
        index,
        np.asarray(tokens, dtype=np.int32),
        np.asarray(logprobs, dtype=np.float32),
        [
            {token + j: logprob - j for j in range(options.top_logprobs)}
            for token, logprob in zip(tokens, logprobs, strict=True)
            if options.top_logprobs
        ],
    )


def spans_of(versions: Sequence[int]) -> tuple[VersionSpan, ...]:
    """Runs of equal versions."""
    starts = [i for i, v in enumerate(versions) if i == 0 or versions[i - 1] != v]
    ends = [*starts[1:], len(versions)]
    return tuple(VersionSpan(versions[s], s, e) for s, e in zip(starts, ends, strict=True))
