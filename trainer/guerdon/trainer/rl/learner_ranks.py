"""The processes of a run: one drives, the others do as it says, in the same order.

Rank 0 talks to the services and writes the run's folder. Whatever needs all ranks (a step,
weights gathered for publishing, a checkpoint of a sharded optimiser) is a method of the learner,
which rank 0 calls here; the others make the same call.
"""

from __future__ import annotations

from typing import Any

from guerdon.trainer.common.errors import DivergedError
from guerdon.trainer.rl.learner.learner import Learner

_DISMISSED = "dismissed"


class LearnerOnAllRanks:
    """Calls the learner of every rank alike.

    Args:
        learner: this rank's.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self._followed = True

    @property
    def main(self) -> bool:
        """Whether this is the rank that drives."""
        return self.learner.ranks.main

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of every rank's learner; what rank 0's returned. Blocks."""
        self.learner.ranks.from_main((method, args))
        try:
            return getattr(self.learner, method)(*args)
        except DivergedError:  # from sums over all ranks: every one of them has left with it
            self._followed = False
            raise

    def follow(self) -> None:
        """Do as rank 0 says, until it dismisses this rank."""
        while True:
            method, args = self.learner.ranks.from_main(("", ()))
            if method == _DISMISSED:
                return
            getattr(self.learner, method)(*args)

    def dismiss(self) -> None:
        """Let the other ranks go."""
        if self._followed:
            self.learner.ranks.from_main((_DISMISSED, ()))
