"""Checks that may never end, in a process that can be killed.

SymPy on `9**9**9`, or a regular expression with nested repeats, holds its thread in C code: no
signal and no thread's time limit ends it. So `python -m guerdon.trainer.rl.checking` answers
questions over its pipes, line by line, and is killed when it takes too long.
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

from guerdon.trainer.errors import TrainingError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How long one check may take."""
_START_SECONDS = 120.0
"""How long the process may take to begin: SymPy loads slowly on a busy machine."""
_MEMORY_BYTES = 2 << 30
_CHARACTERS = 20_000
"""Of a response: only its end is looked at by `maths`, where the answer stands."""


class Checker:
    """Asks a process of its own, one question at a time; starts it at the first."""

    def __init__(self, seconds: float = CHECK_SECONDS) -> None:
        self.gave_up = 0
        """Questions without an answer: too long, or the process died of them."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def ask(self, kind: str, expected: str, text: str) -> bool | None:
        """The answer to one question; None when there is none in time.

        Raises:
            TrainingError: the process can't be started.
        """
        question = json.dumps([kind, expected, text]).encode() + b"\n"
        with self._lock:
            process = self._process or self._start()
            try:
                assert process.stdin is not None
                process.stdin.write(question)
                process.stdin.flush()
                answer = _read_line(process, self._seconds)
            except OSError:  # it died, of this question or earlier
                answer = None
            if answer is None:
                self.gave_up += 1
                self._stop()
                return None
        return bool(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "guerdon.trainer.rl.checking"]
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run, which ends this in its own time
        )  # fmt: skip
        self._process = process
        if _read_line(process, _START_SECONDS) != b'"ready"\n':
            self._stop()
            raise TrainingError("the process that checks answers can't be started (see above)")
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


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
        kind, expected, text = json.loads(line)
        # Unhandled, the signal ends the process even in C code: should the trainer be killed in
        # the middle, nothing is left computing for ever.
        signal.alarm(int(2 * CHECK_SECONDS) + 1)
        try:
            found = _CHECKS[kind](expected, text)
        except Exception:  # a text that the library stumbles over is not shown to be right
            found = False
        signal.alarm(0)
        print(json.dumps(found), file=answers, flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _regex(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def _maths(answer: str, text: str) -> bool:
    from math_verify import parse, verify

    # Their own limits work by signals, which C code does not heed; the caller kills.
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
