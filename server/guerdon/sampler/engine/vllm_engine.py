"""The policy on vLLM: what `PolicyEngine` promises, put together.

Nothing that was drawn under refused weights ever reaches a caller: see `switch.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.sampler.engine.checkpoint_tensors import CheckpointShape, read_specs, weight_files
from guerdon.sampler.engine.llm import Llm
from guerdon.sampler.engine.nccl import NcclReceiver, NcclStaging, check_nccl
from guerdon.sampler.engine.settings import EngineSettings
from guerdon.sampler.engine.staging import FileStaging, StagedFile, StagingArea
from guerdon.sampler.engine.switch import Switch
from guerdon.sampler.types import (
    Completion,
    EngineInfo,
    FinishReason,
    Grown,
    NcclSource,
    Piece,
    PublishOrder,
    PublishResult,
    SamplingOptions,
    StagedWeights,
    TensorSpec,
    VersionSpan,
)
from guerdon.serving.errors import ComputeFailed, Interrupted, Unavailable, UpdateRefused
from guerdon.serving.prompts import TokenArray
from guerdon.together import cancel

_MOST_TRIES = 20
"""Draws of one completion: each but the last was ended by an update that was refused."""


class VLLMEngine:
    """Implements `PolicyEngine`.

    Args:
        folder: the policy's checkpoint.
        name: what it is called.
        settings: how it is computed.
    """

    def __init__(self, folder: Path, name: str, settings: EngineSettings) -> None:
        self._folder, self._name, self._settings = folder, name, settings
        self._llm = Llm()
        self._receiver = NcclReceiver()
        self._info: EngineInfo | None = None
        self._switch: Switch | None = None
        self._area: StagingArea | None = None
        self._shape: CheckpointShape | None = None
        self._most = 0
        """Completions that vLLM draws at a time."""

    async def start(self) -> None:
        """Load the policy."""
        original = weight_files(self._folder)
        await self._llm.start(self._folder, self._settings)
        config = self._llm.config.model_config
        text = config.hf_config.get_text_config()
        self._info = EngineInfo(
            model=self._name,
            dtype=str(config.dtype).removeprefix("torch."),
            max_tokens=int(config.max_model_len),
            vocab_size=int(text.vocab_size),
            eos_token_ids=self._llm.end_tokens(),
        )
        self._most = int(self._llm.config.scheduler_config.max_num_seqs)
        tied = bool(getattr(text, "tie_word_embeddings", False))
        self._shape = CheckpointShape(self._folder, dtype=self._info.dtype, tied=tied)
        self._area = StagingArea()
        self._switch = Switch(self._llm, self._info, original)
        await self._switch.start()

    async def shutdown(self) -> None:
        """End vLLM's processes, and remove what was staged."""
        await self._receiver.close()
        await self._llm.shutdown()
        if self._area is not None:
            self._area.close()

    @property
    def info(self) -> EngineInfo:
        """What is served."""
        assert self._info is not None, "the engine was not started"
        return self._info

    @property
    def version(self) -> int:
        """Version of the weights that serve."""
        return 0 if self._switch is None else self._switch.version

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the last update; empty before the first."""
        return b"" if self._switch is None else self._switch.sha256

    def load(self) -> tuple[int, int]:
        """Completions that are being drawn, and that wait."""
        running = min(self._llm.running, self._most)
        return running, self._llm.running - running

    async def wait_dead(self) -> str:
        """Return when the engine can draw no more, with the reason."""
        while not self._llm.dead:
            if self._switch is not None and self._switch.fatal:
                return self._switch.fatal
            await asyncio.sleep(0.2)
        said = self._llm.failure
        return "vLLM's engine process has ended" + (f": {said}" if said else "")

    # Drawing

    async def generate(
        self,
        prompt: TokenArray,
        options: SamplingOptions,
        *,
        n: int,
        seed: int | None,
        grown: Grown | None = None,
    ) -> AsyncGenerator[Completion, None]:
        """The completions of one prompt, each as it ends."""
        room = self.info.max_tokens - len(prompt)
        drawing = []
        for index in range(n):
            sampling = self._sampling(options, room, seed, index, pieces=grown is not None)
            drawing.append(asyncio.ensure_future(self._draw(prompt, sampling, index, grown)))
        try:
            for finished in asyncio.as_completed(drawing):
                yield await finished
        finally:
            await cancel(drawing)

    def _sampling(
        self, options: SamplingOptions, room: int, seed: int | None, index: int, *, pieces: bool
    ) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k or -1,
            max_tokens=min(options.max_tokens, room),
            stop_token_ids=list(options.stop_token_ids),
            stop=list(options.stop),
            skip_special_tokens=options.skip_special_tokens,
            ignore_eos=options.ignore_eos,
            seed=None if seed is None else _seed(seed, index),
            logprobs=options.top_logprobs,  # and always of the token that was drawn
            detokenize=bool(options.stop),  # to look for them
            output_kind=RequestOutputKind.CUMULATIVE if pieces else RequestOutputKind.FINAL_ONLY,
        )

    async def _draw(
        self, prompt: TokenArray, sampling: Any, index: int, grown: Grown | None
    ) -> Completion:
        """One completion, drawn anew when refused weights had a part in it."""
        switch = self._ready()[0]
        await switch.settled.wait()
        history = switch.history
        for _ in range(_MOST_TRIES):
            output, told = await self._follow(prompt, sampling, index, grown)
            await switch.settled.wait()
            if switch.fatal:
                raise Unavailable("the engine lost its weights")
            if history != switch.history:
                raise Interrupted("an update with reset ended the generation: ask again")
            if output is not None and output.finish_reason != "abort":
                completion = _completion(output, index, switch)
                if completion is not None:
                    if grown is not None and told < len(completion.token_ids):
                        grown(_piece(output, index, told))
                    return completion
            if told:
                raise Interrupted("an update that was refused ended the generation: ask again")
        raise ComputeFailed("updates of the weights kept ending the generation")

    async def _follow(
        self, prompt: TokenArray, sampling: Any, index: int, grown: Grown | None
    ) -> tuple[Any, int]:
        """vLLM's last output of one try, and how many of its tokens were given to `grown`."""
        switch = self._ready()[0]
        told, refusals, output = 0, switch.refusals, None
        async with contextlib.aclosing(self._llm.draw(prompt, sampling.clone())) as outputs:
            async for output in outputs:
                await switch.settled.wait()
                if grown is None or refusals != switch.refusals or output.finish_reason == "abort":
                    continue  # what was refused may have drawn it: its end will show
                if len(output.token_ids) > told:
                    grown(_piece(output, index, told))
                    told = len(output.token_ids)
        return output, told

    # Updates

    async def stage_stream(self, specs: tuple[TensorSpec, ...]) -> FileStaging:
        """Room for tensors that will be written."""
        _, shape, area = self._ready()
        shape.check(specs)
        return area.new(specs)

    async def stage_files(
        self, files: Sequence[Path], specs: tuple[TensorSpec, ...]
    ) -> FileStaging:
        """A copy of the tensors in files: a caller may replace them while ours serve."""
        _, shape, area = self._ready()
        try:
            found = {n: spec for file in files for n, spec in read_specs(file).items()}
        except (OSError, ValueError, KeyError) as error:
            raise UpdateRefused(f"the file can't be read: {error}") from error
        wanted = specs or tuple(found[name] for name in sorted(found))
        absent = [spec.name for spec in wanted if found.get(spec.name) != spec]
        if absent:
            raise UpdateRefused(f"the file does not hold {', '.join(absent[:5])} as announced")
        shape.check(wanted)
        staging = area.new(wanted)
        try:
            await staging.copy(files)
        except BaseException:
            staging.close()
            raise
        return staging

    async def stage_nccl(self, source: NcclSource, specs: tuple[TensorSpec, ...]) -> NcclStaging:
        """Tensors that a trainer broadcasts, taken by a process of its own."""
        _, shape, area = self._ready()
        check_nccl(source)
        shape.check(specs)
        return await self._receiver.stage(area.new(specs), source, specs)

    async def publish(self, staged: StagedWeights, order: PublishOrder) -> PublishResult:
        """Load, compare canaries, switch; or go back to the old weights."""
        assert isinstance(staged, StagedFile)
        return await self._ready()[0].publish(staged, order)

    def _ready(self) -> tuple[Switch, CheckpointShape, StagingArea]:
        if self._switch is None or self._shape is None or self._area is None:
            raise Unavailable("the engine is not running")
        return self._switch, self._shape, self._area


def _piece(output: Any, index: int, start: int) -> Piece:
    """What vLLM drew from a token on, checked."""
    tokens = np.asarray(output.token_ids[start:], dtype=np.int32)
    rows = (output.logprobs or ())[start : len(output.token_ids)]
    if len(rows) != len(tokens):
        raise ComputeFailed("the engine gave another number of log-probabilities than tokens")
    both = zip(rows, tokens.tolist(), strict=True)
    logprobs = np.array([row[token].logprob for row, token in both], dtype=np.float32)
    if not np.isfinite(logprobs).all():
        raise ComputeFailed("the engine gave a log-probability that is not a finite number")
    # Beside the drawn token there is a row's likeliest only where they are asked for.
    wanted = any(len(row) > 1 for row in rows)
    return Piece(index, tokens, logprobs, tuple(map(_likeliest, rows)) if wanted else ())


def _likeliest(row: Mapping[int, Any]) -> dict[int, float]:
    """Log-probabilities of a place's tokens, likeliest first, without those that can't be drawn."""
    ranked = sorted(row.items(), key=lambda each: int(each[1].rank))
    return {int(token): float(each.logprob) for token, each in ranked if each.logprob > -math.inf}


def _completion(output: Any, index: int, switch: Switch) -> Completion | None:
    """What vLLM drew, checked; None when a part of it is of refused weights."""
    whole = _piece(output, index, 0)
    spans: list[VersionSpan] = []
    for span in output.weight_versions or ():
        version = switch.published_version(str(span.version))
        if version is None:
            return None
        spans.append(VersionSpan(version, int(span.start), int(span.end)))
    if output.finish_reason not in ("stop", "length"):
        raise ComputeFailed(f"the engine ended a completion with {output.finish_reason!r}")
    reason = FinishReason.STOP if output.finish_reason == "stop" else FinishReason.LENGTH
    stop = output.stop_reason if isinstance(output.stop_reason, str) else ""
    return Completion(
        index,
        whole.token_ids,
        whole.logprobs,
        reason,
        tuple(_joined(spans)),
        stop_text=stop,
        alternatives=whole.alternatives,
    )


def _seed(seed: int, index: int) -> int:
    """The seed of completion i of an item: 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _joined(spans: Sequence[VersionSpan]) -> list[VersionSpan]:
    """Neighbouring spans of one version as one: it may have been loaded twice."""
    found: list[VersionSpan] = []
    for span in spans:
        if found and found[-1].version == span.version and found[-1].end == span.start:
            found[-1] = VersionSpan(span.version, found[-1].start, span.end)
        else:
            found.append(span)
    return found
