"""The process in which a reward function of the user's own runs.

`python -m guerdon.trainer.common.services.reward_function_process MODULE:FUNCTION` imports it from
Python's path, the working directory first, and says what it is, or why it can't be had:

    {"source": SHA-256, "needs": [NAME, …]}    or    {"error": SENTENCE}

Then it answers each line with one, until its input ends; with it the process is killed, and what
the function started too, also in the middle of a call (unless that holds Python's lock in C code:
then when it lets go). So whoever starts it gives it a session of its own.

    {"prompt": …, "completions": […], "completion_ids": […], "row": {…}}
    {"rewards": [NUMBER, …]}    or    {"error": SENTENCE}
"""

from __future__ import annotations

import asyncio
import copy
import difflib
import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, BinaryIO

GIVEN = ("prompts", "completions", "completion_ids")
"""What every function may take beside the columns of the rows."""
_SHOWN = 500
"""Characters of an exception's message that are passed on; all of it is on standard error."""


class FunctionRefused(Exception):
    """The function can't be had, or gave what is no reward; the text is a sentence."""


class Function:
    """A reward function, with what it takes.

    Args:
        name: `MODULE:FUNCTION`.

    Raises:
        FunctionRefused: there is none of that name.
    """

    def __init__(self, name: str) -> None:
        module, _, attribute = name.partition(":")
        self._call = _imported(module, attribute)
        self.source = _sha256(module, self._call)
        self._accepts, self.needs = _parameters(self._call)
        self._runner = asyncio.Runner()

    def rewards(self, question: Mapping[str, Any]) -> list[float]:
        """The reward of each completion.

        Raises:
            FunctionRefused: what it gave is no list of as many finite numbers.
        """
        count = len(question["completions"])
        once = {"prompts": question["prompt"], **question["row"]}
        columns = {
            name: [copy.deepcopy(value) for _ in range(count)] for name, value in once.items()
        }
        columns |= {name: question[name] for name in ("completions", "completion_ids")}
        if self._accepts is not None:
            columns = {name: columns[name] for name in self._accepts & columns.keys()}
        found = self._call(**columns)
        if inspect.isawaitable(found):
            found = self._runner.run(_awaited(found))
        return _numbers(found, count)


async def _awaited(found: Any) -> Any:
    return await found


def _imported(module: str, attribute: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module)
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "/")
        if not missing:  # it is there, and something is wrong in it
            traceback.print_exc()
        raise FunctionRefused(f"can't import {module!r}: {_shown(error)}") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise FunctionRefused(f"{module!r} has no {attribute!r}{hint}")
        found = getattr(found, name)
    if not callable(found):
        raise FunctionRefused(
            f"{attribute!r} of {module!r} is a {type(found).__name__}, not a function"
        )
    return found  # type: ignore[no-any-return]


def _sha256(module: str, function: Callable[..., Any]) -> str:
    """SHA-256 over the files of the module that was named and of the one that defines it."""
    defined = getattr(inspect.unwrap(function), "__module__", None) or module
    digest = hashlib.sha256()
    for name in dict.fromkeys((module, defined)):
        file = getattr(sys.modules.get(name), "__file__", None)
        digest.update(Path(file).read_bytes() if file else name.encode())
    return digest.hexdigest()


def _parameters(function: Callable[..., Any]) -> tuple[set[str] | None, list[str]]:
    """The names that it takes (None: all), and those that it can't do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:  # of a function written in C
        raise FunctionRefused(f"doesn't say what it takes: {_shown(error)}") from error
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise FunctionRefused(
                f"takes {parameter.name!r} by position only, and all come by name"
            )
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needs = [p.name for p in named if p.default is p.empty and p.name not in GIVEN]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None if takes_all else {p.name for p in named}, needs


def _numbers(found: Any, count: int) -> list[float]:
    unordered = isinstance(found, AbstractSet | Mapping)
    if unordered or isinstance(found, str | bytes) or not isinstance(found, Iterable):
        raise FunctionRefused(f"returned a {type(found).__name__}, not a list of numbers")
    values = list(itertools.islice(found, count + 1))  # it may have no end
    if len(values) != count:
        gave = "more" if len(values) > count else len(values)
        raise FunctionRefused(f"gave {gave} rewards for {count} completions")
    return [_number(value, place) for place, value in enumerate(values, start=1)]


def _number(value: Any, place: int) -> float:
    if value is None:
        raise FunctionRefused(
            f"gave None for completion {place}: every completion needs a number (beside other "
            "rewards, TRL counts None as 0)"
        )
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise FunctionRefused(
            f"gave {str(value)[:80]!r} for completion {place}, not a number"
        ) from None
    if not math.isfinite(number):
        raise FunctionRefused(f"gave {number} for completion {place}, not a finite number")
    return number


def _shown(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_SHOWN]}" if text else type(error).__name__


def _answered(function: Function, line: bytes) -> dict[str, Any]:
    try:
        return {"rewards": function.rewards(json.loads(line))}
    except FunctionRefused as error:
        return {"error": str(error)}
    except BaseException as error:  # SystemExit too: it is no reward
        traceback.print_exc()
        return {"error": f"raised {_shown(error)}"}


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The process's input and output, which what the function prints or reads no longer reaches."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return questions, answers


def _read(questions: BinaryIO, lines: queue.SimpleQueue[bytes]) -> None:
    for line in questions:
        lines.put(line)
    os.killpg(0, signal.SIGKILL)  # whoever asked is gone, whatever the function is doing


def main() -> None:
    """Answer questions until they end."""
    questions, answers = _own_pipes()

    def say(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found).encode() + b"\n")
        answers.flush()

    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions, lines), daemon=True).start()
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does; what is imported here was before
    try:
        function = Function(sys.argv[1])
    except FunctionRefused as error:
        say({"error": str(error)})
        return
    say({"source": function.source, "needs": function.needs})
    while True:
        say(_answered(function, lines.get()))


if __name__ == "__main__":
    main()
