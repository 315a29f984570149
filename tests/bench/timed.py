"""`guerdon train`, with a line of JSON for how long each part of a step took.

    python -m tests.bench.timed RECORD.jsonl ppo --policy …

The run is the real one; only clocks are put around the learner's parts and the publisher.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

INNER = {
    "_computed": "proximal",
    "_reference_logprobs": "reference",
    "_backward": "backward",
    "_apply": "optimiser",
}
"""Methods of the learner that count while it steps, and what they are called in the record."""


class Record:
    """Seconds by part, a line for each whole part."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inner: dict[str, float] = {}

    def add(self, **values: float) -> None:
        """Write a line."""
        with self._path.open("a") as handle:
            handle.write(json.dumps(values) + "\n")

    def inner(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A part of a step, however often it is called."""

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            found = method(*args, **kwargs)
            self._inner[name] = self._inner.get(name, 0.0) + time.perf_counter() - begun
            return found

        return timed

    def whole(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A line for each call, with the inner parts in it."""

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.clear()
            begun = time.perf_counter()
            found = method(*args, **kwargs)
            self.add(**{name: time.perf_counter() - begun}, **self._inner)
            return found

        return timed

    def waited(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """As `whole`, for a coroutine."""

        @functools.wraps(method)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            found = await method(*args, **kwargs)
            self.add(**{name: time.perf_counter() - begun})
            return found

        return timed


def main() -> int:
    """Put the clocks in place and train."""
    from guerdon.cli.main import main as guerdon
    from guerdon.trainer.common.services.publishing import Publisher
    from guerdon.trainer.rl.learner.learner import Learner

    record = Record(Path(sys.argv[1]))
    for method, name in INNER.items():
        setattr(Learner, method, record.inner(name, getattr(Learner, method)))
    Learner.step = record.whole("learn", Learner.step)  # type: ignore[method-assign]
    Learner.weights = record.whole("gather", Learner.weights)  # type: ignore[method-assign]
    Publisher.publish = record.waited("transfer", Publisher.publish)  # type: ignore[method-assign]
    return guerdon(["train", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
