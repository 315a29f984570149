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
import signal
import sys
from typing import Any

from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.services.line_process import END_SECONDS, LineProcess

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""Processor time of one check."""
_PATIENCE = 60.0
"""Times `CHECK_SECONDS` that may pass on the clock before the process counts as stuck."""
_MEMORY_BYTES = 2 << 30
_CHARACTERS = 20_000
"""Most characters of a response that `maths` looks at: its end, where the answer stands."""


class Checker(LineProcess):
    """Asks a process of its own, one question at a time; starts it at the first.

    Args:
        kind: of its questions, `regex` or `maths`: the process loads SymPy for `maths` alone.
        seconds: of processor time that one check may take.
    """

    module = "guerdon.trainer.common.services.sandbox"
    purpose = "checks answers"

    def __init__(self, kind: str, seconds: float = CHECK_SECONDS) -> None:
        super().__init__(kind)
        self.gave_up = 0
        """Questions without an answer: too long, or a fresh process died of them."""
        self._kind, self._seconds = kind, seconds
        atexit.register(self.close)

    def ask(self, expected: str, text: str) -> bool | None:
        """The answer to one question; None when it takes too long, or its process dies of it.

        Raises:
            TrainingError: the process can't be started, or was killed from outside twice.
        """
        question = json.dumps([expected, text, self._seconds]).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    return bool(json.loads(self._answer(question, _PATIENCE * self._seconds)))
                code = self._stop(END_SECONDS)
                if code == -signal.SIGPROF:
                    break
            if code == -signal.SIGKILL:
                raise TrainingError(
                    "the process that checks answers was killed, or stood still, twice in a "
                    f"{self._kind} check: is there memory enough?"
                )
            self.gave_up += 1
            logger.warning(
                "a %s check ran over %g seconds or broke its process, and counts as not passed "
                "(%d so far)",
                self._kind,
                self._seconds,
                self.gave_up,
            )
        return None

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()


def _serve(kind: str) -> None:
    """Answer questions of one kind from stdin until it ends."""
    logging.disable(logging.CRITICAL)  # math-verify tells of every text that it can't parse
    _limit_memory()
    check = _CHECKS[kind]
    if check is _maths:
        from math_verify import parse

        parse("$1$", parsing_timeout=None)  # what loads lazily, loads now
    # math-verify and SymPy may print; answers have a pipe of their own.
    answers, sys.stdout = sys.stdout, sys.stderr
    print('"ready"', file=answers, flush=True)
    for line in sys.stdin:
        expected, text, seconds = json.loads(line)
        # Unhandled, the signal ends the process even in C code, also where the trainer is gone.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = check(expected, text)
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
    _serve(sys.argv[1])
