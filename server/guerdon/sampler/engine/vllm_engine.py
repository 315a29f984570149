"""The policy on vLLM's AsyncLLM, in this process; vLLM computes in processes of its own.

Nothing that was drawn under refused weights ever reaches a caller. An update loads the weights
while generation stands still, lets it go on, and compares the canaries; completions that end
before the verdict wait for it. If the canaries part, the weights of before are loaded again, and
whatever drew a token in between is drawn anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.sampler.engine.launch import engine_arguments, quiet_environment
from guerdon.sampler.engine.settings import EngineSettings
from guerdon.sampler.engine.specs import CheckpointShape, read_specs, weight_files
from guerdon.sampler.engine.staging import FileStaging, StagedFile, StagingArea
from guerdon.sampler.requests import Options
from guerdon.sampler.types import (
    Canary,
    Completion,
    FinishReason,
    Nccl,
    PolicyInfo,
    Published,
    TensorSpec,
    TokenArray,
    VersionSpan,
    WeightUpdate,
)
from guerdon.serving.errors import (
    CheckpointRefused,
    ComputeFailed,
    Interrupted,
    Unavailable,
    UpdateRefused,
)

logger = logging.getLogger(__name__)

_TOLERANCE = {"float32": 1e-4}
_OTHER_TOLERANCE = 0.15
"""vLLM rounds logits to bfloat16: on SmolLM2's prompts that alone makes 0.05 on average, against
the same weights computed in float32."""
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
        self._llm: Any = None
        self._info: PolicyInfo | None = None
        self._area: StagingArea | None = None
        self._shape: CheckpointShape | None = None
        self._good: StagedFile | None = None
        self._versions = {"0": 0}
        """By vLLM's label of the weights. A version that is tried twice has two labels."""
        self._label = "0"
        self._attempts = 0
        self._history = 0
        self._updating = asyncio.Lock()
        self._settled = asyncio.Event()
        self._settled.set()
        self._requests: set[str] = set()
        self._count = 0
        self._sha256 = b""
        self._fatal = ""

    async def start(self) -> None:
        """Load the policy."""
        quiet_environment(self._settings)
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = engine_arguments(self._folder, self._settings)
            self._llm = await asyncio.to_thread(AsyncLLM.from_engine_args, arguments)
        except (ValueError, RuntimeError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointRefused(f"vLLM can't serve {self._folder}: {reason}") from error
        config = self._llm.model_config
        text = config.hf_config.get_text_config()
        self._info = PolicyInfo(
            model=self._name,
            dtype=str(config.dtype).removeprefix("torch."),
            max_tokens=int(config.max_model_len),
            vocab_size=int(text.vocab_size),
            eos_token_ids=_end_tokens(config),
        )
        tied = bool(getattr(text, "tie_word_embeddings", False))
        self._shape = CheckpointShape(self._folder, dtype=self._info.dtype, tied=tied)
        self._area = StagingArea()
        await self._llm.update_weight_version(self._label)

    async def shutdown(self) -> None:
        """End vLLM's processes, and remove what was staged."""
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
            self._llm = None
        if self._area is not None:
            self._area.close()

    @property
    def info(self) -> PolicyInfo:
        """What is served."""
        assert self._info is not None, "the engine was not started"
        return self._info

    @property
    def version(self) -> int:
        """Of the weights that serve."""
        return self._versions[self._label]

    @property
    def sha256(self) -> bytes:
        """Of the last update; empty before the first."""
        return self._sha256

    def load(self) -> tuple[int, int]:
        """Completions that are being drawn, and that wait."""
        most = self._settings.max_num_seqs or 64
        if not self._settled.is_set():
            return 0, len(self._requests)
        return min(len(self._requests), most), max(0, len(self._requests) - most)

    async def wait_dead(self) -> str:
        """Return when the engine can draw no more, with the reason."""
        while not self._fatal:
            if self._llm is not None and self._llm.errored:
                self._fatal = "vLLM's engine process has ended"
            await asyncio.sleep(0.2)
        return self._fatal

    # Drawing

    async def generate(
        self, prompt: TokenArray, options: Options, *, n: int, seed: int | None
    ) -> AsyncGenerator[Completion, None]:
        """The completions of one prompt, each as it ends."""
        room = self.info.max_tokens - len(prompt)
        drawing = [
            asyncio.ensure_future(self._draw(prompt, self._sampling(options, room, seed, i), i))
            for i in range(n)
        ]
        try:
            for finished in asyncio.as_completed(drawing):
                yield await finished
        finally:
            for task in drawing:
                task.cancel()
            await asyncio.gather(*drawing, return_exceptions=True)

    def _sampling(self, options: Options, room: int, seed: int | None, index: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k or -1,
            max_tokens=min(options.max_tokens, room),
            stop_token_ids=list(options.stop_token_ids),
            ignore_eos=options.ignore_eos,
            seed=None if seed is None else _seed(seed, index),
            logprobs=0,  # of the token that was drawn
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _draw(self, prompt: TokenArray, sampling: Any, index: int) -> Completion:
        """One completion, drawn anew when refused weights had a part in it."""
        history = self._history
        for _ in range(_MOST_TRIES):
            output = await self._ask(prompt, sampling)
            await self._settled.wait()
            if history != self._history:
                raise Interrupted("an update with reset ended the generation: ask again")
            if output is None or output.finish_reason == "abort":
                continue
            completion = self._completion(output, index)
            if completion is not None:
                return completion
        raise ComputeFailed("updates of the weights kept ending the generation")

    async def _ask(self, prompt: TokenArray, sampling: Any) -> Any:
        """vLLM's output for one request; cancelling it aborts the request."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._count += 1
        request = f"guerdon-{self._count}"
        self._requests.add(request)
        try:
            last = await self._last_output(prompt, sampling, request)
        except EngineDeadError as error:
            raise Unavailable("the engine has died") from error
        except (EngineGenerateError, ValueError) as error:
            raise ComputeFailed("the engine failed on this request") from error
        finally:
            self._requests.discard(request)
        return None if last is None else last.outputs[0]

    async def _last_output(self, prompt: TokenArray, sampling: Any, request: str) -> Any:
        last = None
        asked = {"prompt_token_ids": prompt.tolist()}
        async for output in self._engine().generate(asked, sampling, request):
            last = output
        return last

    def _completion(self, output: Any, index: int) -> Completion | None:
        """What vLLM drew, checked; None when a part of it is of refused weights."""
        tokens = np.asarray(output.token_ids, dtype=np.int32)
        if not output.logprobs or len(output.logprobs) != len(tokens):
            raise ComputeFailed("the engine gave another number of log-probabilities than tokens")
        rows = zip(output.logprobs, output.token_ids, strict=True)
        logprobs = np.array([row[token].logprob for row, token in rows], dtype=np.float32)
        spans = []
        for span in output.weight_versions or ():
            label, start, end = _span(span)
            if label not in self._versions:
                return None
            spans.append(VersionSpan(self._versions[label], start, end))
        if output.finish_reason not in ("stop", "length"):
            raise ComputeFailed(f"the engine ended a completion with {output.finish_reason!r}")
        reason = FinishReason.STOP if output.finish_reason == "stop" else FinishReason.LENGTH
        return Completion(index, tokens, logprobs, reason, tuple(_joined(spans)))

    # Updates

    async def stage_stream(self, specs: tuple[TensorSpec, ...]) -> FileStaging:
        """Room for tensors that will be written."""
        shape, area = self._ready()
        shape.check(specs)
        return area.new(specs)

    async def stage_files(
        self, files: Sequence[Path], specs: tuple[TensorSpec, ...]
    ) -> FileStaging:
        """A copy of the tensors in files: a caller may replace them while ours serve."""
        shape, area = self._ready()
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

    async def stage_nccl(self, source: Nccl, specs: tuple[TensorSpec, ...]) -> FileStaging:
        """Not taken by this engine."""
        raise UpdateRefused("this sampler takes no weights by NCCL: publish by stream or shared")

    async def publish(self, staged: object, update: WeightUpdate) -> Published:
        """Load, compare canaries, switch; or go back to the old weights."""
        assert isinstance(staged, StagedFile)
        async with self._updating:
            before = await self._before(update.canaries)
            self._settled.clear()
            try:
                return await self._switch(staged, update, before)
            finally:
                self._settled.set()

    async def _switch(
        self, staged: StagedFile, update: WeightUpdate, before: list[np.ndarray[Any, Any]]
    ) -> Published:
        self._attempts += 1
        label = f"{update.version}.{self._attempts}"
        begun = time.monotonic()
        await self._pause()
        try:
            if update.reset:
                self._history += 1
                await self._abort_all()
            await self._load([staged.path], label)
        except Exception as error:
            logger.exception("new weights could not be loaded")
            await self._go_back(update.canaries, before)
            raise UpdateRefused("the engine could not load the weights") from error
        loaded = time.monotonic()
        await self._engine().resume_generation()
        resumed = time.monotonic()
        mean, largest, tokens = await self._compare(update.canaries)
        tolerance = update.mean_tolerance or _TOLERANCE.get(self.info.dtype, _OTHER_TOLERANCE)
        if not mean <= tolerance:  # also when it is NaN
            await self._pause()
            await self._go_back(update.canaries, before)
            raise UpdateRefused(
                f"the canaries' log-probabilities differ by {mean:.3g} on average and by "
                f"{largest:.3g} at most, over {tokens} tokens; {tolerance:g} is let pass"
            )
        self._take(staged, update.version, label)
        return Published(
            canary_tokens=tokens, canary_mean_difference=mean, canary_max_difference=largest,
            load_seconds=loaded - begun, canary_seconds=time.monotonic() - resumed,
            pause_seconds=resumed - begun,
        )  # fmt: skip

    def _take(self, staged: StagedFile, version: int, label: str) -> None:
        """The new weights serve from now on; the file is what a later update goes back to."""
        self._versions[label] = version
        self._label, self._sha256 = label, staged.sha256
        staged.kept = True
        if self._good is not None:
            self._good.release()
        self._good = staged

    async def _go_back(
        self, canaries: Sequence[Canary], before: list[np.ndarray[Any, Any]]
    ) -> None:
        """Load the weights of before, prove them, and draw anew what the others had a part in."""
        try:
            files = [self._good.path] if self._good else weight_files(self._folder)
            await self._load(files, self._label)
            await self._abort_all()
            await self._engine().resume_generation()
            again = await self._logprobs(canaries)
            parted = max((float(abs(a - b).mean()) for a, b in zip(again, before, strict=True)),
                         default=0.0)  # fmt: skip
            tolerance = _TOLERANCE.get(self.info.dtype, _OTHER_TOLERANCE)
            if not parted <= tolerance:
                raise RuntimeError(f"the old weights differ by {parted:.3g} after loading them")
        except Exception as error:
            self._fatal = f"the weights of before could not be restored: {error}"
            raise Unavailable("the engine lost its weights") from error

    async def _load(self, files: Sequence[Path], label: str) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._engine()
        await llm.start_weight_update()
        try:
            paths = [str(path) for path in files]
            await llm.update_weights(WeightTransferUpdateRequest(update_info={"paths": paths}))
        finally:  # else vLLM takes an update for under way for ever
            await llm.finish_weight_update(label)

    async def _pause(self) -> None:
        """Hold generation; what runs goes on later, its keys and values computed anew."""
        await self._engine().pause_generation(mode="keep", clear_cache=True)

    async def _abort_all(self) -> None:
        if self._requests:
            await self._engine().abort(list(self._requests))

    async def _compare(self, canaries: Sequence[Canary]) -> tuple[float, float, int]:
        """Mean and largest absolute difference, and over how many tokens."""
        found = await self._logprobs(canaries)
        if not found:
            return 0.0, 0.0, 0
        parted = np.concatenate(
            [abs(own - canary.logprobs) for own, canary in zip(found, canaries, strict=True)]
        )
        return float(parted.mean()), float(parted.max()), len(parted)

    async def _before(self, canaries: Sequence[Canary]) -> list[np.ndarray[Any, Any]]:
        """What the canaries get now, to prove that the old weights are back if need be."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await self._logprobs(canaries)
        except EngineDeadError as error:
            raise Unavailable("the engine has died") from error
        except ValueError as error:
            raise UpdateRefused(f"a canary can't be computed: {error}") from error

    async def _logprobs(self, canaries: Sequence[Canary]) -> list[np.ndarray[Any, Any]]:
        """Log-probabilities of each sequence's tokens after the first, at temperature 1."""
        return list(await asyncio.gather(*(self._logprobs_of(c.token_ids) for c in canaries)))

    async def _logprobs_of(self, tokens: TokenArray) -> np.ndarray[Any, Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self._count += 1
        last = await self._last_output(tokens, sampling, f"canary-{self._count}")
        if last is None or not last.prompt_logprobs:
            raise RuntimeError("vLLM gave no log-probabilities of a canary")
        rows = zip(last.prompt_logprobs[1:], tokens.tolist()[1:], strict=True)
        return np.array([row[token].logprob for row, token in rows], dtype=np.float64)

    def _engine(self) -> Any:
        if self._llm is None:
            raise Unavailable("the engine is not running")
        return self._llm

    def _ready(self) -> tuple[CheckpointShape, StagingArea]:
        assert self._shape is not None, "the engine was not started"
        assert self._area is not None
        return self._shape, self._area


def _seed(seed: int, index: int) -> int:
    """The seed of completion i of an item: 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _span(span: Any) -> tuple[str, int, int]:
    return str(span.version), int(span.start), int(span.end)


def _joined(spans: Sequence[VersionSpan]) -> list[VersionSpan]:
    """Neighbouring spans of one version as one: it may have been loaded twice."""
    found: list[VersionSpan] = []
    for span in spans:
        if found and found[-1].version == span.version and found[-1].end == span.start:
            found[-1] = VersionSpan(span.version, found[-1].start, span.end)
        else:
            found.append(span)
    return found


def _end_tokens(config: Any) -> tuple[int, ...]:
    """The tokens that end a completion, by the generation config and the model's own."""
    generation = config.try_get_generation_config() or {}
    ends = generation.get("eos_token_id", config.hf_config.get_text_config().eos_token_id)
    if ends is None:
        return ()
    return tuple(int(e) for e in ends) if isinstance(ends, list | tuple) else (int(ends),)
