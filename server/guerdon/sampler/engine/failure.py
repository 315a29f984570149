"""Why vLLM's engine failed, told by its process to the sampler's.

vLLM raises "Engine core initialization failed" in the sampler's process and leaves the cause to a
log of a hundred lines. The process that failed logs the exception first: a handler there writes it
into a file that the sampler reads.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

VARIABLE = "GUERDON_SAMPLER_FAILURE"
"""Environment variable that names the file."""

_LOGGERS = ("vllm.v1.executor.multiproc_executor", "vllm.v1.engine.core")
"""Those that log what ends a worker, and what ends the engine's process."""
_WORKER = re.compile(r"Worker failed with error ['\"](.*)['\"], please check the stack trace.*")
"""The frame that the engine's process puts around what its worker said."""
_MESSAGES = ("failed to start", "WorkerProc failed", "fatal error")


class FailureFile:
    """The sampler's side: where the engine's processes write why they failed."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="guerdon-sampler-"))
        self._file = self._folder / "failure"

    def announce(self) -> None:
        """Name the file to the processes that this one starts from now on."""
        os.environ[VARIABLE] = str(self._file)

    def read(self) -> str:
        """The first failure of a process as one line; empty when there was none."""
        try:
            return self._file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Remove the file."""
        shutil.rmtree(self._folder, ignore_errors=True)


def report_failures() -> None:
    """The engine's side: write the failure that this process logs. Repeating it is harmless."""
    file = os.environ.get(VARIABLE)
    if not file:
        return
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Reporter) for handler in logger.handlers):
            logger.addHandler(_Reporter(Path(file)))


def error_sentence(error: BaseException) -> str:
    """What an exception of vLLM says, without the frame that pydantic puts around it."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        faults = [str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors()]
        return " ".join("; ".join(faults).split())
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    worker = _WORKER.fullmatch(text)
    return worker[1] if worker else text


class _Reporter(logging.Handler):
    def __init__(self, file: Path) -> None:
        super().__init__(logging.ERROR)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Write the exception, unless another process has written: the first is the cause."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not any(part in record.getMessage() for part in _MESSAGES):
            return
        try:
            with self._file.open("x", encoding="utf-8") as file:
                file.write(f"{error_sentence(error)}\n")
        except OSError:
            pass  # another was first, or the sampler has gone
