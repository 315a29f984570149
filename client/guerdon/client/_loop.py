"""One event loop in a thread of its own, for all synchronous clients of the process.

gRPC's asyncio side polls once for the whole process, and clients on many loops wake each
other for nothing: hence one loop. It is never the caller's, so that a synchronous client also
works where a loop is running already, as in Jupyter.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _after_fork_in_child() -> None:
    """The thread is not here, and another one may have held the lock."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop, started when it is first needed; a forked child gets its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="guerdon-client", daemon=True).start()
        return _loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result; an interrupt (Ctrl-C) cancels it first.

    Raises:
        RuntimeError: called on the loop's own thread, where waiting would be for ever.
    """
    loop = background_loop()
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        coroutine.close()
        raise RuntimeError("a synchronous client cannot be used inside an asynchronous one")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        if future.cancel():
            with suppress(CancelledError, Exception):
                future.result()
        raise
