"""How far a run of RFT has come, beside its samples and TRL's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.trainer.common.measuring.policy_evaluation import Evaluation
from guerdon.trainer.common.run_folder import write_whole
from guerdon.trainer.common.run_state import RunState


@dataclass
class RFTState(RunState):
    """What is done. Saved whole, or as it was before."""

    before: dict[str, Any] | None = None
    """The first policy on held-out prompts."""
    after: dict[str, Any] | None = None
    """The tuned one."""
    dtype: str = "float32"
    """The dtype of the published weights, and so of the policy that is saved."""

    @classmethod
    def mend(cls, values: dict[str, Any]) -> None:
        """Put right in place what JSON can't hold as it was: its keys are texts."""
        for name in ("before", "after"):
            if values[name]:
                values[name]["prompts"] = {
                    key: {int(index): value for index, value in means.items()}
                    for key, means in values[name]["prompts"].items()
                }

    def evaluations(self) -> list[Evaluation]:
        """Those that were made, in order."""
        trees = [tree for tree in (self.before, self.after) if tree is not None]
        return [Evaluation.from_tree(tree) for tree in trees]


def forget(path: Path, unwanted: Callable[[dict[str, Any]], bool]) -> None:
    """Take rows out of a JSONL file: those of a phase that was begun and not finished."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line and not unwanted(json.loads(line))]
    write_whole(path, "".join(line + "\n" for line in kept))
