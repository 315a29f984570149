"""Rewards by a function of the user's own, in a process that can be killed.

It has the signature of TRL's reward functions, and is called for the completions of one prompt at
a time. What it does instead of giving a finite number for each (raising, hanging, ending its
process) ends the run: no reward is made up.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import signal
from collections.abc import Sequence
from typing import Any

from guerdon.data import RowError
from guerdon.trainer.common.data.rows import missing_column
from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.services.line_process import END_SECONDS, LineProcess
from guerdon.trainer.common.services.reward_function_process import GIVEN
from guerdon.trainer.common.services.types import PromptRow, Sample


class FunctionVerifier(LineProcess):
    """The verifier `MODULE:FUNCTION`; its process starts when it is first needed.

    Args:
        name: of the function.
        seconds: that a call may take, and the start, which has two minutes at least.
    """

    module = "guerdon.trainer.common.services.reward_function_process"
    purpose = "runs a reward function"

    needs_answer = False
    faults_survived = 0

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, seconds=seconds)
        self._name, self._seconds = name, seconds
        self._source = ""
        self._needs: list[str] = []
        self._closed = False
        self._turn = asyncio.Lock()
        atexit.register(self._end)

    def check(self, row: PromptRow) -> None:
        """Refuse a row without a column that the function needs.

        Raises:
            RowError: names the column.
            SettingsError: there is no such function.
        """
        self._ready()
        for name in GIVEN:
            if name in row.extra:
                raise RowError(name, "is what a reward function gets under that name: rename it")
        for name in self._needs:
            if name not in row.extra:
                raise RowError(name, f"{missing_column(name, row.extra)}; the function needs it")

    async def start(self) -> str:
        """SHA-256 of the function's source.

        Raises:
            SettingsError: there is no such function.
        """
        await asyncio.to_thread(self._ready)
        return self._source

    async def score(self, row: PromptRow, samples: Sequence[Sample]) -> list[float]:
        """What the function gives for each completion.

        Raises:
            TrainingError: it gave something else, raised, hung, or ended its process.
        """
        question = {
            "prompt": row.prompt,
            "completions": [row.answered(sample.text) for sample in samples],
            "completion_ids": [sample.response_ids_T.tolist() for sample in samples],
            "row": dict(row.extra),
        }
        line = json.dumps(question).encode() + b"\n"
        async with self._turn:  # whoever waits takes no thread
            found = json.loads(await asyncio.to_thread(self._ask, line))
        if "error" in found:
            raise TrainingError(
                f"{self._named} {found['error']} (the prompt is row {row.index + 1})"
            )
        rewards: list[float] = found["rewards"]
        return rewards

    async def close(self) -> None:
        """End the process, whatever it is doing."""
        await asyncio.to_thread(self._end)

    @property
    def _named(self) -> str:
        return f"the reward function {self._name!r}"

    def _ready(self) -> None:
        with self._lock:
            if self._process is None:
                self._start()

    def _greeted(self, line: bytes) -> None:
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            self._stop(END_SECONDS)
            raise SettingsError(f"verifier: {self._name}: {found['error']}")
        if self._source not in ("", found["source"]):
            self._stop()
            raise TrainingError(f"{self._named} has changed since the run began")
        self._source, self._needs = found["source"], found["needs"]

    def _ask(self, line: bytes) -> bytes:
        with self._lock:
            for again in (False, True):
                if self._closed:
                    raise TrainingError(f"{self._named} was asked after the run had ended")
                try:
                    return self._answer(line, self._seconds)
                except TimeoutError as error:
                    self._stop()
                    raise TrainingError(
                        f"{self._named} gave no rewards within {self._seconds:g} seconds "
                        "(--request-timeout)"
                    ) from error
                except OSError as error:
                    code = self._stop(END_SECONDS)
                    if code != -signal.SIGKILL or again:  # once may be for want of memory
                        raise TrainingError(
                            f"{self._named} ended its process ({_how(code)})"
                        ) from (error)
        raise AssertionError("unreachable")

    def _end(self) -> None:
        self._closed = True
        self._kill()  # first: a call that hangs holds the lock
        with self._lock:
            self._stop()
        atexit.unregister(self._end)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"exit code {code}"
