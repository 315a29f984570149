"""vLLM's AsyncLLM behind the few things that are asked of it; its errors become ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.sampler.engine.failure import FailureFile
from guerdon.sampler.engine.launch import engine_arguments, quiet_environment, start_failure
from guerdon.sampler.engine.settings import EngineSettings
from guerdon.serving.errors import CheckpointRefused, ComputeFailed, Unavailable
from guerdon.serving.prompts import TokenArray

_END_SECONDS = 20.0
"""vLLM's processes are killed after that; its own 5 are not enough for a busy machine."""


class Llm:
    """One engine of vLLM, which computes in processes of its own."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._starting: asyncio.Task[None] | None = None
        self._failure = FailureFile()
        self._running: set[str] = set()
        self._count = 0

    async def start(self, folder: Path, settings: EngineSettings) -> None:
        """Load the policy.

        Raises:
            CheckpointRefused: vLLM can't serve it.
        """
        self._starting = asyncio.create_task(asyncio.to_thread(self._start, folder, settings))
        try:
            await asyncio.shield(self._starting)
        except (ValueError, RuntimeError, OSError) as error:
            reason = start_failure(error, self._failure.read())
            raise CheckpointRefused(f"vLLM can't serve {folder}: {reason}") from error

    def _start(self, folder: Path, settings: EngineSettings) -> None:
        """Start vLLM; called in a thread, since importing it alone takes seconds."""
        quiet_environment(settings)
        self._failure.announce()
        from vllm.v1.engine.async_llm import AsyncLLM

        # Not returned: the thread pool would keep what a call returned, beyond its shutdown.
        self._llm = AsyncLLM.from_engine_args(engine_arguments(folder, settings))

    async def shutdown(self) -> None:
        """End vLLM's processes, also when it is still starting: a thread can't be interrupted."""
        await self._end()
        self._failure.close()

    async def _end(self) -> None:
        if self._starting is None:
            return
        with contextlib.suppress(Exception):  # told by `start`
            await self._starting
        self._starting = None
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # else it takes the end for a fault, and says so
        await asyncio.to_thread(llm.shutdown, timeout=_END_SECONDS)
        _close_context(llm)

    @property
    def config(self) -> Any:
        """vLLM's resolved settings."""
        return self._engine().vllm_config

    @property
    def dead(self) -> bool:
        """Whether it has started and can compute no more."""
        return self._llm is not None and bool(self._llm.errored)

    @property
    def failure(self) -> str:
        """What the engine's process said when it failed; empty when it said nothing."""
        return self._failure.read()

    @property
    def running(self) -> int:
        """Completions that were asked of vLLM and have not ended."""
        return len(self._running)

    def end_tokens(self) -> tuple[int, ...]:
        """What ends a completion in vLLM: the tokenizer's end token, the generation config's."""
        llm = self._engine()
        found = llm.model_config.try_get_generation_config().get("eos_token_id")
        ends = {found} if isinstance(found, int) else set(found or ())
        tokenizers = llm.renderer.get_eos_token_id()
        return tuple(sorted(ends | ({tokenizers} - {None})))

    # Drawing

    async def draw(self, prompt: TokenArray, sampling: Any) -> AsyncGenerator[Any, None]:
        """vLLM's outputs for one completion, as `sampling` wants them; closing it aborts it.

        Raises:
            Unavailable: the engine died.
            ComputeFailed: it failed on this request.
        """
        request = self._next("draw")
        self._running.add(request)
        try:
            with _translated():
                async with contextlib.aclosing(self._ask(prompt, sampling, request)) as found:
                    async for output in found:
                        yield output.outputs[0]
        finally:
            self._running.discard(request)

    async def logprobs(self, tokens: TokenArray) -> npt.NDArray[np.float64]:
        """Log-probabilities of a sequence's tokens after the first, at temperature 1."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        with _translated():
            last = None
            async for output in self._ask(tokens, sampling, self._next("logprobs")):
                last = output
        if last is None or not last.prompt_logprobs:
            raise ComputeFailed("vLLM gave no log-probabilities of a sequence")
        rows = zip(last.prompt_logprobs[1:], tokens.tolist()[1:], strict=True)
        return np.array([row[token].logprob for row, token in rows], dtype=np.float64)

    async def abort_all(self) -> None:
        """End every completion that is being drawn; their outputs say so."""
        if self._running:
            await self._engine().abort(list(self._running))

    # Weights

    async def pause(self) -> None:
        """Hold generation; what runs goes on later, its keys and values computed anew."""
        with _translated():
            await self._engine().pause_generation(mode="keep", clear_cache=True)

    async def resume(self) -> None:
        """Let generation go on."""
        with _translated():
            await self._engine().resume_generation()

    async def label(self, label: str) -> None:
        """Call the weights so in the spans of what is drawn."""
        with _translated():
            await self._engine().update_weight_version(label)

    async def load(self, files: Sequence[Path], label: str) -> None:
        """Replace the weights; generation must be paused.

        Raises:
            Exception: whatever went wrong; the weights may be half of each.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm = self._engine()
        paths = [str(path) for path in files]
        await llm.start_weight_update()
        try:
            await llm.update_weights(WeightTransferUpdateRequest(update_info={"paths": paths}))
        except BaseException:
            # Of several workers, those that did not fail take the update for under way until then;
            # one that failed has ended it itself.
            if self.config.parallel_config.world_size > 1:
                with contextlib.suppress(Exception):
                    await llm.finish_weight_update()
            raise
        await llm.finish_weight_update(label)

    def _ask(self, prompt: TokenArray, sampling: Any, request: str) -> Any:
        asked = {"prompt_token_ids": prompt.tolist()}
        return self._engine().generate(asked, sampling, request)

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    def _engine(self) -> Any:
        if self._llm is None:
            raise Unavailable("the engine is not running")
        return self._llm


def _close_context(llm: Any) -> None:
    """End the zmq context of an engine that was shut down, on the loop that used its sockets.

    vLLM 0.32 closes the sockets and leaves the context to the collector, which makes zmq warn of
    it, at any time later. Ending it would wait for a socket that is open: closing twice is nothing.
    """
    import zmq

    resources = llm.engine_core.resources
    for held in vars(resources).values():
        if isinstance(held, zmq.Socket):
            held.close(linger=0)
    resources.ctx.term()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except EngineDeadError as error:
        raise Unavailable("the engine has died") from error
    except (EngineGenerateError, ValueError) as error:
        raise ComputeFailed(f"the engine failed: {error}") from error
