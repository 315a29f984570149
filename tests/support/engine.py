"""The vLLM engine in this process, beside what transformers says of the same weights.

tensors = drawn(served.tensors, seed=1)
await served.publish(tensors)
completions = await served.draw(PROMPT, n=4, max_tokens=8)
served.check(completions, PROMPT)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from guerdon.sampler.engine.vllm_engine import VLLMEngine
from guerdon.sampler.types import (
    Canary,
    Completion,
    PublishOrder,
    PublishResult,
    SamplingOptions,
    TensorSpec,
)

Tensors = Mapping[str, torch.Tensor]

PROMPT = np.array([5, 6, 7, 8, 9, 41, 200], dtype=np.int32)
CANARIES = tuple(
    np.random.default_rng(seed).integers(7, 350, size=24).astype(np.int32) for seed in range(3)
)


def drawn(like: Tensors, seed: int) -> dict[str, torch.Tensor]:
    """Other weights of the same scale, every tensor: log-probabilities differ by nats."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor.mean() + tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in like.items()
    }


class Plain:
    """Log-probabilities by transformers alone."""

    def __init__(self, folder: Path) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def logprobs(
        self, tensors: Tensors, ids: Iterable[int], temperature: float = 1.0
    ) -> np.ndarray[Any, Any]:
        """Of each of T tokens after the first: float64[T - 1]."""
        whole = torch.tensor([list(map(int, ids))])
        rows = (self._logits(tensors, whole) / temperature).log_softmax(-1)
        return np.asarray(rows.gather(-1, whole[0, 1:, None])[:, 0])

    def likeliest(self, tensors: Tensors, ids: Iterable[int]) -> list[int]:
        """The likeliest token after each of the tokens but the last."""
        whole = torch.tensor([list(map(int, ids))])
        return list(self._logits(tensors, whole).argmax(-1).tolist())

    def _logits(self, tensors: Tensors, whole: torch.Tensor) -> torch.Tensor:
        found = self._model.load_state_dict(dict(tensors), strict=False)
        assert not found.unexpected_keys
        assert found.missing_keys in ([], ["lm_head.weight"])
        with torch.inference_mode():
            logits: torch.Tensor = self._model(input_ids=whole).logits[0, :-1].double()
        return logits


def specs_of(tensors: Tensors) -> tuple[TensorSpec, ...]:
    """As a trainer announces them."""
    return tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    )


def bytes_of(tensors: Tensors) -> list[bytes]:
    """Of each tensor, in order."""
    return [
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for tensor in tensors.values()
    ]


def checksum(tensors: Tensors) -> bytes:
    """SHA-256 over all tensors' bytes, in order."""
    return hashlib.sha256(b"".join(bytes_of(tensors))).digest()


@dataclass
class Served:
    """A running engine and the weights that it should serve."""

    engine: VLLMEngine
    folder: Path
    plain: Plain
    tensors: Tensors
    history: dict[int, Tensors] = field(default_factory=dict)

    def canaries(self, tensors: Tensors) -> tuple[Canary, ...]:
        """Fixed sequences with transformers' log-probabilities under some weights."""
        return tuple(
            Canary(ids, self.plain.logprobs(tensors, ids).astype(np.float32)) for ids in CANARIES
        )

    async def stage(self, tensors: Tensors, *, sha256: bytes | None = None) -> Any:
        """Stream tensors in pieces: the staging, and what was checked."""
        staging = await self.engine.stage_stream(specs_of(tensors))
        with contextlib.ExitStack() as stack:
            stack.callback(staging.close)
            for place, data in enumerate(bytes_of(tensors)):
                for at in range(0, len(data), 10_000):
                    await staging.write(place, at, data[at : at + 10_000])
            staged = await staging.finish(sha256 or checksum(tensors))
            stack.pop_all()
        return staging, staged

    async def publish(
        self,
        tensors: Tensors,
        *,
        believed: Tensors | None = None,
        reset: bool = False,
        version: int = 0,
    ) -> PublishResult:
        """Stream new weights, with the canaries of what the trainer believes to have sent."""
        staging, staged = await self.stage(tensors)
        version = version or self.engine.version + 1
        try:
            answer = await self.engine.publish(
                staged, self.update(tensors if believed is None else believed, version, reset)
            )
        finally:
            staging.close()
        self.tensors = self.history[version] = tensors
        return answer

    def update(self, tensors: Tensors, version: int, reset: bool = False) -> PublishOrder:
        """An update with canaries."""
        return PublishOrder(
            version=version, reset=reset, canaries=self.canaries(tensors), mean_tolerance=0.0
        )

    async def draw(
        self,
        prompt: np.ndarray[Any, Any] = PROMPT,
        *,
        n: int = 1,
        seed: int | None = None,
        max_tokens: int = 16,
        **options: Any,
    ) -> list[Completion]:
        """All completions of a prompt, in their order."""
        asked = SamplingOptions(max_tokens=max_tokens, **options)
        found = [c async for c in self.engine.generate(prompt, asked, n=n, seed=seed)]
        return sorted(found, key=lambda completion: completion.index)

    def check(
        self,
        completions: Sequence[Completion],
        prompt: np.ndarray[Any, Any] = PROMPT,
        *,
        temperature: float = 1.0,
        most: float = 1e-3,
    ) -> None:
        """Each token's log-probability is transformers' under the version that drew it."""
        assert completions
        for completion in completions:
            whole = [*prompt, *completion.token_ids]
            assert [s.start for s in completion.spans[1:]] == [s.end for s in completion.spans[:-1]]
            assert completion.spans[0].start == 0
            assert completion.spans[-1].end == len(completion.token_ids)
            for span in completion.spans:
                expected = self.plain.logprobs(self.history[span.version], whole, temperature)
                expected = expected[len(prompt) - 1 :][span.start : span.end]
                parted = np.abs(completion.logprobs[span.start : span.end] - expected)
                assert parted.max() < most, (span, parted.max())

    async def check_serving(self, version: int) -> None:
        """The weights of a version serve, and no others."""
        assert self.engine.version == version
        completions = await self.draw(n=3, max_tokens=8, ignore_eos=True)
        assert {s.version for c in completions for s in c.spans} == {version}
        self.check(completions)

    async def until_running(self, count: int) -> None:
        """Wait until vLLM itself has so many requests."""
        async with asyncio.timeout(60):
            while len(self.running()) != count:  # noqa: ASYNC110 - vLLM has no event for it
                await asyncio.sleep(0.01)

    async def until_drawing(self, count: int) -> None:
        """Wait until vLLM has so many requests, and each of them a token."""
        await self.until_running(count)
        states = self.engine._llm._llm.output_processor.request_states
        async with asyncio.timeout(60):
            while not all(s.detokenizer.num_output_tokens() for s in states.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def running(self) -> list[str]:
        """The requests that vLLM has."""
        return list(self.engine._llm._llm.output_processor.request_states)
