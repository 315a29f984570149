"""New weights take the place of those that serve, or leave no trace.

    pause ─ load ─ resume ─ canaries ─┬─ they agree: the version is published
                                      └─ they part, or anything fails: pause ─ load the weights
                                         of before ─ end what drew meanwhile ─ resume ─ prove them

Nothing can be computed while vLLM is paused, so the canaries run beside generation that goes on.
Completions that end before the verdict wait for it (`settled`), and those in which refused weights
had a part are drawn anew: vLLM labels every token, and a label counts only once it is published.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from guerdon.sampler.engine.llm import Llm
from guerdon.sampler.engine.staging import StagedFile
from guerdon.sampler.types import Canary, EngineInfo, PublishOrder, PublishResult
from guerdon.serving.errors import Unavailable, UpdateRefused
from guerdon.serving.prompts import TokenArray

logger = logging.getLogger(__name__)

_TOLERANCE = {"float32": 1e-4}
_OTHER_TOLERANCE = 0.15
"""vLLM rounds logits to bfloat16: on SmolLM2's prompts that alone makes 0.05 on average, against
the same weights computed in float32."""
_PROBE_TOKENS = 32


class Switch:
    """The versions of one engine's weights.

    Args:
        llm: started.
        original: the safetensors files that it was started with.
    """

    def __init__(self, llm: Llm, info: EngineInfo, original: Sequence[Path]) -> None:
        self._llm, self._info, self._original = llm, info, original
        self._versions = {"0": 0}
        """Versions by vLLM's label of the weights. One that is tried twice has two labels."""
        self._label = "0"
        self._attempts = 0
        self._good: StagedFile | None = None
        self._updating = asyncio.Lock()
        self.sha256 = b""
        """SHA-256 of the last update; empty before the first."""
        self.history = 0
        """Counts the updates with `reset`."""
        self.refusals = 0
        """Counts the updates that were tried and refused."""
        self.settled = asyncio.Event()
        """Set while no switch is under way."""
        self.fatal = ""
        """Why the engine can't go on; empty while it can."""
        self.settled.set()
        count = min(_PROBE_TOKENS, info.max_tokens - 1)
        self._probe = (np.arange(count) * info.vocab_size // count).astype(np.int32)

    @property
    def version(self) -> int:
        """Version of the weights that serve."""
        return self._versions[self._label]

    def published_version(self, label: str) -> int | None:
        """The version that vLLM calls so; None if it was refused or is not decided."""
        return self._versions.get(label)

    async def start(self) -> None:
        """Give the weights of the start their label."""
        await self._llm.label(self._label)

    async def publish(self, staged: StagedFile, order: PublishOrder) -> PublishResult:
        """Load, compare canaries, switch; or go back to the weights of before.

        Raises:
            UpdateRefused: a canary parts, or the engine could not load them.
            Unavailable: the engine died, or lost its weights.
        """
        async with self._updating:
            before = await self._llm.logprobs(self._probe)
            self.settled.clear()
            try:
                return await self._switch(staged, order, before)
            finally:
                self.settled.set()

    async def _switch(
        self, staged: StagedFile, order: PublishOrder, before: npt.NDArray[np.float64]
    ) -> PublishResult:
        self._attempts += 1
        label = f"{order.version}.{self._attempts}"
        clock = _Clock()
        drew = False
        try:
            await self._llm.pause()
            if order.reset:
                await self._llm.abort_all()
            await self._llm.load([staged.path], label)
            clock.lap("load")
            drew = True
            await self._llm.resume()
            clock.lap("pause")
            mean, largest, tokens = await self._compare(order)
        except Exception as error:
            self.refusals += 1
            await self._go_back(before, drew=drew)
            if isinstance(error, UpdateRefused):
                raise
            logger.exception("new weights could not be loaded and compared")
            raise UpdateRefused(
                "the engine could not load the weights, or compute the canaries"
            ) from error
        self._take(staged, order, label)
        return PublishResult(
            canary_tokens=tokens,
            canary_mean_difference=mean,
            canary_max_difference=largest,
            load_seconds=clock.laps["load"],
            pause_seconds=clock.laps["pause"],
            canary_seconds=clock.now() - clock.laps["pause"],
        )

    def _take(self, staged: StagedFile, order: PublishOrder, label: str) -> None:
        """The new weights serve from now on; the file is what a later update goes back to."""
        self._versions[label] = order.version
        self._label, self.sha256 = label, staged.sha256
        self.history += order.reset
        staged.kept = True
        if self._good is not None:
            self._good.release()
        self._good = staged

    async def _go_back(self, before: npt.NDArray[np.float64], *, drew: bool) -> None:
        """Load the weights of before, and prove that they serve.

        Args:
            before: the probe's log-probabilities under them.
            drew: whether tokens may have been drawn under the others.

        Raises:
            Unavailable: it can't be done; the engine must be started anew.
        """
        try:
            await self._llm.pause()
            await self._llm.load([self._good.path] if self._good else self._original, self._label)
            if drew:
                await self._llm.abort_all()
            await self._llm.resume()
            parted = float(abs(await self._llm.logprobs(self._probe) - before).mean())
            if not parted <= self._tolerance:
                raise RuntimeError(f"a probe differs by {parted:.3g} on average")
        except Exception as error:
            self.fatal = f"the weights of before could not be restored: {error}"
            raise Unavailable("the engine lost its weights, and must be started anew") from error

    @property
    def _tolerance(self) -> float:
        return _TOLERANCE.get(self._info.dtype, _OTHER_TOLERANCE)

    async def _compare(self, order: PublishOrder) -> tuple[float, float, int]:
        """Mean and largest absolute difference, and over how many tokens.

        Raises:
            UpdateRefused: the mean is more than is let pass, or no number.
        """
        if not order.canaries:
            return 0.0, 0.0, 0
        parted = np.concatenate(await asyncio.gather(*map(self._difference, order.canaries)))
        mean, largest = float(parted.mean()), float(parted.max())
        tolerance = order.mean_tolerance or self._tolerance
        if not mean <= tolerance:  # also when it is NaN
            raise UpdateRefused(
                f"the canaries' log-probabilities differ by {mean:.3g} on average and by "
                f"{largest:.3g} at most, over {len(parted)} tokens; {tolerance:g} is let pass"
            )
        return mean, largest, len(parted)

    async def _difference(self, canary: Canary) -> npt.NDArray[np.float64]:
        tokens: TokenArray = canary.token_ids
        return abs(await self._llm.logprobs(tokens) - canary.logprobs)


class _Clock:
    """Seconds since it was made, and by when what was done."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.laps: dict[str, float] = {}

    def now(self) -> float:
        return time.monotonic() - self._begun

    def lap(self, name: str) -> None:
        self.laps[name] = self.now()
