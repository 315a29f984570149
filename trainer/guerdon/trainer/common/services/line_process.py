"""A Python module in a process of its own that answers lines with lines, and can be killed.

The module is run without the working directory on its path, where a user's `queue.py` would stand
in for Python's. It writes a line once it can answer, and then one for each line that it is sent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import ClassVar

from guerdon.trainer.common.errors import TrainingError

END_SECONDS = 1.0
"""How long a process whose pipe has closed may take to end."""
START_SECONDS = 120.0
"""How long any process may take to begin: SymPy loads slowly on a busy machine."""
MAX_ANSWER_BYTES = 64 << 20


class ProcessEnded(OSError):
    """The process ended without an answer."""


class LineProcess:
    """Starts the process when it is first needed, and anew when it has ended.

    Args:
        arguments: of the module.
        seconds: that the process may take to begin, where they are more than `START_SECONDS`.
    """

    module: ClassVar[str]
    purpose: ClassVar[str]
    """What the process does, in messages: `checks answers`."""

    def __init__(self, *arguments: str, seconds: float = 0.0) -> None:
        self._arguments = arguments
        self._start_seconds = max(seconds, START_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        """Held by who asks the process, or ends it."""

    def _answer(self, question: bytes, seconds: float) -> bytes:
        """The line that answers a line.

        Raises:
            TimeoutError: there is none after so many seconds; the process was killed.
            OSError: the process died, of this question or earlier.
            TrainingError: it can't be started.
        """
        return _exchange(self._process or self._start(), question, seconds)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-P", "-m", self.module, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the run, which ends this in its own time
        )
        self._process = process
        try:
            self._greeted(_exchange(process, b"", self._start_seconds))
        except TimeoutError as error:
            self._stop()
            raise TrainingError(
                f"the process that {self.purpose} gave no sign of life in "
                f"{self._start_seconds:g} seconds"
            ) from error
        except OSError as error:
            self._stop()
            raise TrainingError(
                f"the process that {self.purpose} can't be started (see above)"
            ) from error
        return process

    def _greeted(self, line: bytes) -> None:
        """Take the first line of a process."""

    def _kill(self) -> None:
        """Kill the process from another thread than the one that asks it, which hears of it."""
        process = self._process
        if process is not None:
            _kill(process)

    def _stop(self, patience: float = 0.0) -> int | None:
        """End the process and all that it started; its return code, where it had ended by itself.

        Args:
            patience: seconds to wait for its own end.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)  # its pipes close a moment before it ends
        _kill(process)
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code


def _exchange(process: subprocess.Popen[bytes], question: bytes, seconds: float) -> bytes:
    """Write a line and read one; the errors of `LineProcess._answer`."""
    assert process.stdin is not None
    assert process.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    # By a thread, for a process that stands still holds up who writes to it as well.
    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        process.stdin.write(question)
        process.stdin.flush()
        line = process.stdout.readline(MAX_ANSWER_BYTES)
        if line.endswith(b"\n"):
            return line
        if len(line) == MAX_ANSWER_BYTES:
            raise TrainingError(f"a process answers with more than {MAX_ANSWER_BYTES >> 20} MiB")
        raise ProcessEnded("the process ended")
    except OSError as error:
        if late.is_set():
            raise TimeoutError(f"no answer in {seconds:g} seconds") from error
        raise
    finally:
        watch.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and those that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
