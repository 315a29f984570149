"""How far a run of RFT has come, beside its samples and TRL's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from guerdon.trainer.common.measuring.policy_evaluation import Evaluation
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
