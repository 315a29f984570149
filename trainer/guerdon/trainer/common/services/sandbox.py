"""Checks that may never end, in a process that can be killed.

SymPy on `9**9**9`, or a regular expression with nested repeats, holds its thread in C code: no
signal and no thread's time limit ends it. So `python -m guerdon.trainer.common.services.sandbox`
answers questions over its pipes, line by line, and ends itself by a timer of its own processor
time: a busy machine makes no check too long. If it dies of anything else, the question is asked
once more of a new process; and if that one is killed from outside too, the run ends: no reward is
made up.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any

from guerdon.trainer.common.errors import TrainingError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""Processor time of one check."""
_PATIENCE = 60.0
"""Times `CHECK_SECONDS` that may pass on the clock before the process counts as stuck."""
_END_SECONDS = 1.0
"""How long a process whose pipe has closed may take to end."""
_START_SECONDS = 120.0
"""How long the process may take to begin: SymPy loads slowly on a busy machine."""
_MEMORY_BYTES = 2 << 30
_CHARACTERS = 20_000
"""Most characters of a response that `maths` looks at: its end, where the answer stands."""


class Checker:
    """Asks a process of its own, one question at a time; starts it at the first.

    Args:
        seconds: of processor time that one check may take.
    """

    def __init__(self, seconds: float = CHECK_SECONDS) -> None:
        self.gave_up = 0
        """Questions without an answer: too long, or a fresh process died of them."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, kind: str, expected: str, text: str) -> bool | None:
        """The answer to one question; None when it takes too long, or its process dies of it.

        Raises:
            TrainingError: the process can't be started, or was killed from outside twice.
        """
        question = json.dumps([kind, expected, text, self._seconds]).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                answer = self._answer(question)
                if answer is not None:
                    return bool(json.loads(answer))
                code = self._stop(_END_SECONDS)
                if code == -signal.SIGPROF:
                    break
            if code == -signal.SIGKILL:
                raise TrainingError(
                    "the process that checks answers was killed, or stood still, twice in a "
                    f"{kind} check: is there memory enough?"
                )
            self.gave_up += 1
            logger.warning(
                "a %s check ran over %g seconds or broke its process, and counts as not passed "
                "(%d so far)",
                kind,
                self._seconds,
                self.gave_up,
            )
        return None

    def _answer(self, question: bytes) -> bytes | None:
        """A line; None when the process ended, or does not move."""
        process = self._process or self._start()
        try:
            assert process.stdin is not None
            process.stdin.write(question)
            process.stdin.flush()
            return _read_line(process, _PATIENCE * self._seconds)
        except OSError:  # it died, of this question or earlier
            return None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "guerdon.trainer.common.services.sandbox"]
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run, which ends this in its own time
        )
        self._process = process
        if _read_line(process, _START_SECONDS) != b'"ready"\n':
            self._stop()
            raise TrainingError("the process that checks answers can't be started (see above)")
        return process

    def _stop(self, patience: float = 0.0) -> int | None:
        """End the process; its return code, as of a signal where it had ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)  # its pipes close a moment before it ends
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return code


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """A line of the process; None when it dies or takes longer."""
    pipe: IO[bytes] | None = process.stdout
    assert pipe is not None
    end, line = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, end - time.monotonic())):
                return None
            data = pipe.read(4096)
            if not data:
                return None
            line += data
    return line


def _serve() -> None:
    """Answer questions from stdin until it ends."""
    logging.disable(logging.CRITICAL)  # math-verify tells of every text that it can't parse
    _limit_memory()
    from math_verify import parse

    parse("$1$", parsing_timeout=None)  # what loads lazily, loads now
    # math-verify and SymPy may print; answers have a pipe of their own.
    answers, sys.stdout = sys.stdout, sys.stderr
    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        kind, expected, text, seconds = json.loads(line)
        # Unhandled, the signal ends the process even in C code, also where the trainer is gone.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = _CHECKS[kind](expected, text)
        except Exception:  # a text that the library stumbles over is not shown to be right
            found = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(found), file=answers, flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _regex(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def _maths(answer: str, text: str) -> bool:
    from math_verify import parse, verify

    # Their own limits work by signals that C code does not heed; the process's timer ends it.
    found = parse(text[-_CHARACTERS:], parsing_timeout=None)
    return bool(found) and verify(_gold(answer), found, timeout_seconds=None)


@functools.lru_cache(maxsize=4096)
def _gold(answer: str) -> Any:
    from math_verify import parse

    bare = parse(answer, parsing_timeout=None)
    # LaTeX counts as such only within marks.
    return parse(f"${answer}$", parsing_timeout=None) if "\\" in answer or not bare else bare


_CHECKS = {"regex": _regex, "maths": _maths}

if __name__ == "__main__":
    _serve()
