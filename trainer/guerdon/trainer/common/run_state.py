"""How far a run has come, in one small file beside the rest; seconds by phase."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.run_folder import write_whole


@contextmanager
def timed_phase(
    seconds: dict[str, float], name: str, changed: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], None]]:
    """Time a phase, also one that an error ends.

    Args:
        seconds: by phase; gets more of this one.
        name: of the phase.
        changed: called when there is more.

    Yields:
        What may be called to add up what was spent so far.
    """
    begun = time.monotonic()

    def spend() -> None:
        nonlocal begun
        now = time.monotonic()
        seconds[name] = seconds.get(name, 0.0) + now - begun
        begun = now
        changed()

    try:
        yield spend
    finally:
        spend()


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """The seconds as a summary says them."""
    return {name: round(spent, 2) for name, spent in seconds.items()}


@dataclass
class RunState:
    """What is done. Saved whole, or as it was before.

    Args:
        path: the file; what is there of an earlier part of the run is taken up.
    """

    path: Path
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Revisions of the reward models, which stay the same over the run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, earlier parts of the run included."""
    faults: dict[str, int] = field(default_factory=dict)
    """Survived, by kind."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The state in a file, or that of a run that has not begun.

        Raises:
            OutputError: the file can't be read.
        """
        if not path.exists():
            return cls(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            cls.mend(found)
            return cls(path, **found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path} can't be read: {error!r}") from error

    @classmethod
    def mend(cls, values: dict[str, Any]) -> None:
        """Put right in place what JSON can't hold as it was."""

    def save(self) -> None:
        """Write the state to its file."""
        values = asdict(self)
        del values["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(values, allow_nan=False))

    def survived(self, faults: Mapping[str, int]) -> None:
        """Add faults, by kind."""
        for kind, count in faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count
        self.save()

    def phase(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Time a phase. What it gives may be called to add up, and save, what was spent so far."""
        return timed_phase(self.seconds, name, self.save)


def package_versions(*packages: str) -> dict[str, str]:
    """The versions of Guerdon and of packages that a run's figures come from."""
    return {name: version(name) for name in ("guerdon", *packages)}
