"""How far a run of RFT has come, beside its samples and TRL's checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guerdon.trainer.errors import OutputError
from guerdon.trainer.rl.evaluation import Evaluation
from guerdon.trainer.run_folder import write_whole


@dataclass
class RFTState:
    """What is done. Saved whole, or as it was before.

    Args:
        path: the file; what is there of an earlier part of the run is taken up.
    """

    path: Path
    before: dict[str, Any] | None = None
    """The first policy on held-out prompts."""
    after: dict[str, Any] | None = None
    """The tuned one."""
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Revisions of the reward models, which stay the same over the run."""
    dtype: str = "float32"
    """Of the published weights, and so of the policy that is saved."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, earlier parts of the run included."""
    faults: dict[str, int] = field(default_factory=dict)
    """Survived, by kind."""

    @classmethod
    def read(cls, path: Path) -> RFTState:
        """The state in a file, or that of a run that has not begun.

        Raises:
            OutputError: the file can't be read.
        """
        if not path.exists():
            return cls(path)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for name in ("before", "after"):
                if found[name]:  # JSON's keys are texts
                    found[name]["prompts"] = {
                        key: {int(index): value for index, value in means.items()}
                        for key, means in found[name]["prompts"].items()
                    }
            return cls(path, **found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{path} can't be read: {error!r}") from error

    def save(self) -> None:
        """Write it."""
        values = asdict(self)
        del values["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(values, allow_nan=False))

    def evaluations(self) -> list[Evaluation]:
        """Those that were made, in order."""
        trees = [tree for tree in (self.before, self.after) if tree is not None]
        return [Evaluation.from_tree(tree) for tree in trees]

    def survived(self, faults: Mapping[str, int]) -> None:
        """Add faults, by kind."""
        for kind, count in faults.items():
            self.faults[kind] = self.faults.get(kind, 0) + count
        self.save()

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[], None]]:
        """Time a phase. What it gives may be called to add up, and save, what was spent so far."""
        begun = [time.monotonic()]

        def spend() -> None:
            now = time.monotonic()
            self.seconds[name] = self.seconds.get(name, 0.0) + now - begun[0]
            begun[0] = now
            self.save()

        try:
            yield spend
        finally:
            spend()


def forget(path: Path, unwanted: Callable[[dict[str, Any]], bool]) -> None:
    """Take rows out of a JSONL file: those of a phase that was begun and not finished."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line and not unwanted(json.loads(line))]
    write_whole(path, "".join(line + "\n" for line in kept))
