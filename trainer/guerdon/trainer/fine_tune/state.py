"""What a resumed run need not do again: what was measured before training, and the time spent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guerdon.trainer.common.run_folder import write_whole
from guerdon.trainer.fine_tune.samples import Answer

STATE = "begun.json"


@dataclass
class Begun:
    """Of a run that was measured before training, and may have been interrupted since."""

    before: dict[str, Any] = field(default_factory=dict)
    """Likelihoods of the held-out rows by the first policy."""
    answers: list[Answer] = field(default_factory=list)
    """Its answers to the first of them."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, of earlier parts of the run."""

    @classmethod
    def read(cls, folder: Path) -> Begun:
        """What an earlier part of the run left in a folder, or nothing."""
        try:
            return cls(**json.loads((folder / STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, folder: Path) -> None:
        """Write it, whole."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / STATE, json.dumps(asdict(self), ensure_ascii=False))
