"""A policy engine on `transformers`, which can be killed at a point of its work.

It stands where vLLM stands in `guerdon serve sampler`: everything above it (admission, the wire,
updates, health) is the real sampler's, and so are the checks of what is published. It draws one
token of one completion at a time, so a seed gives the same bits in any company.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tests.support.formula_engine import spans_of
from transformers import AutoModelForCausalLM

from guerdon.sampler.engine.checkpoint_tensors import CheckpointShape
from guerdon.sampler.engine.staging import FileStaging, StagedFile, StagingArea
from guerdon.sampler.types import (
    Completion,
    EngineInfo,
    FinishReason,
    Grown,
    NcclSource,
    PublishOrder,
    PublishResult,
    SamplingOptions,
    TensorSpec,
)
from guerdon.serving.errors import Interrupted, UpdateRefused
from guerdon.serving.prompts import TokenArray

TOLERANCE = 1e-4
"""Mean difference of canaries that is let pass."""


class Deaths:
    """Ends the process with SIGKILL when a point is passed for the n-th time.

    Args:
        plan: `POINT:N`, or nothing. The points are `draw` (a token is drawn), `stage` (an update's
            tensors arrive), `switch` (before the new weights serve) and `switched` (after it,
            before the trainer is told).
    """

    def __init__(self, plan: str) -> None:
        self._point, _, count = plan.partition(":")
        self._left = int(count or 0)

    def at(self, point: str) -> None:
        """A point is passed."""
        if point == self._point:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


class MortalStaging(FileStaging):
    """The real one, with a point in it."""

    deaths: Deaths

    async def write(self, tensor: int, offset: int, data: bytes) -> None:
        await super().write(tensor, offset, data)
        if tensor == 3:
            self.deaths.at("stage")


class ModelEngine:
    """Implements `guerdon.sampler.types.PolicyEngine` in float32.

    Args:
        folder: of the policy.
        deaths: when it ends.
        seconds_per_token: what drawing a token takes at least.
    """

    def __init__(self, folder: Path, deaths: Deaths, seconds_per_token: float) -> None:
        self._folder, self._deaths, self._seconds = folder, deaths, seconds_per_token
        self.version = 0
        self.sha256 = b""
        self._history = 0
        self._running = 0
        self._chance = random.Random(os.getpid())

    async def start(self) -> None:
        """Load the policy."""
        model: Any = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        self._model = model.eval()
        config = model.config
        self.info = EngineInfo(
            model=str(self._folder),
            dtype="float32",
            max_tokens=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            eos_token_ids=(config.eos_token_id,),
        )
        self._shape = CheckpointShape(
            self._folder, dtype="float32", tied=config.tie_word_embeddings
        )
        self._area = StagingArea()

    async def shutdown(self) -> None:
        """Remove what was staged."""
        self._area.close()

    def load(self) -> tuple[int, int]:
        """Completions that are being drawn; none wait."""
        return self._running, 0

    async def wait_dead(self) -> str:
        """It never dies without its process."""
        await asyncio.Event().wait()
        raise AssertionError

    async def generate(
        self,
        prompt: TokenArray,
        options: SamplingOptions,
        *,
        n: int,
        seed: int | None,
        grown: Grown | None = None,
    ) -> AsyncGenerator[Completion, None]:
        """The completions of one prompt, each as it ends; trainers ask for no pieces."""
        assert grown is None
        chances = [
            random.Random(self._chance.random() if seed is None else f"{seed}/{index}")
            for index in range(n)
        ]
        drawing = [
            asyncio.ensure_future(self._draw(prompt, options, index, chance))
            for index, chance in enumerate(chances)
        ]
        try:
            for finished in asyncio.as_completed(drawing):
                yield await finished
        finally:
            for task in drawing:
                task.cancel()
            await asyncio.gather(*drawing, return_exceptions=True)

    async def _draw(
        self, prompt: TokenArray, options: SamplingOptions, index: int, chance: random.Random
    ) -> Completion:
        assert options.top_p == 1.0, "it draws from the whole distribution only"
        assert not options.top_k
        ends = () if options.ignore_eos else (*self.info.eos_token_ids, *options.stop_token_ids)
        ids, logprobs, versions = prompt.tolist(), [], []
        history = self._history
        self._running += 1
        try:
            while len(logprobs) < options.max_tokens and (not logprobs or ids[-1] not in ends):
                await asyncio.sleep(self._seconds)
                if history != self._history:
                    raise Interrupted("an update with reset ended the generation: ask again")
                token, logprob = self._next(ids, options.temperature, chance)
                ids.append(token)
                logprobs.append(logprob)
                versions.append(self.version)
                self._deaths.at("draw")
        finally:
            self._running -= 1
        return Completion(
            index=index,
            token_ids=np.asarray(ids[len(prompt) :], dtype=np.int32),
            logprobs=np.asarray(logprobs, dtype=np.float32),
            finish_reason=FinishReason.STOP if ids[-1] in ends else FinishReason.LENGTH,
            spans=spans_of(versions),
        )

    @torch.no_grad()
    def _next(self, ids: list[int], temperature: float, chance: random.Random) -> tuple[int, float]:
        """A token, with the log-probability that it was drawn with."""
        logits_V = self._model(input_ids=torch.tensor([ids])).logits[0, -1] / temperature
        logprobs_V = logits_V.log_softmax(-1)
        token = chance.choices(range(len(logprobs_V)), weights=logprobs_V.exp().tolist())[0]
        return token, float(logprobs_V[token])

    # Updates

    async def stage_stream(self, specs: tuple[TensorSpec, ...]) -> FileStaging:
        """Room for tensors that will be written."""
        self._shape.check(specs)
        staging = self._area.new(specs)
        staging.__class__ = MortalStaging
        assert isinstance(staging, MortalStaging)
        staging.deaths = self._deaths
        return staging

    async def stage_files(
        self, files: Sequence[Path], specs: tuple[TensorSpec, ...]
    ) -> FileStaging:
        """A copy of the tensors in files."""
        staging = await self.stage_stream(specs)
        await staging.copy(files)
        return staging

    async def stage_nccl(self, source: NcclSource, specs: tuple[TensorSpec, ...]) -> FileStaging:
        """Not taken."""
        raise UpdateRefused("there is no GPU here")

    async def publish(self, staged: object, order: PublishOrder) -> PublishResult:
        """Load, compare canaries, switch; or go back."""
        assert isinstance(staged, StagedFile)
        before = {name: t.clone() for name, t in self._model.state_dict().items()}
        self._deaths.at("switch")
        missing, unknown = self._model.load_state_dict(load_file(staged.path), strict=False)
        assert not unknown
        assert set(missing) <= {"lm_head.weight"}
        parted = self._parted(order)
        if not parted.mean() <= (order.mean_tolerance or TOLERANCE):
            self._model.load_state_dict(before)
            raise UpdateRefused(f"the canaries differ by {parted.mean():.3g}")
        self._history += order.reset
        self.version, self.sha256 = order.version, staged.sha256
        self._deaths.at("switched")
        return PublishResult(
            canary_tokens=len(parted),
            canary_mean_difference=float(parted.mean()),
            canary_max_difference=float(parted.max()),
            load_seconds=0.0,
            canary_seconds=0.0,
            pause_seconds=0.0,
        )

    @torch.no_grad()
    def _parted(self, order: PublishOrder) -> np.ndarray[Any, Any]:
        """Absolute differences of the canaries' log-probabilities; 0 where there are none."""
        found = [np.zeros(1)]
        for canary in order.canaries:
            ids = torch.from_numpy(canary.token_ids.astype(np.int64))
            logprobs = self._model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            own = logprobs.gather(-1, ids[1:, None])[:, 0].numpy()
            found.append(abs(own - canary.logprobs))
        return np.concatenate(found[1:] or found)
