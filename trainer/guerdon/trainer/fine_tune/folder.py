"""The folder of an SFT, DPO or ORPO run: as that of every run that trains a policy."""

from __future__ import annotations

import shutil
from pathlib import Path

from guerdon.trainer.common.policy_folder import PolicyFolder
from guerdon.trainer.common.run_folder import SUMMARY, last_checkpoint


class AlignFolder(PolicyFolder):
    """A run's folder. Making the object looks only; `begin` writes."""

    may_change = frozenset({"output", "keep_checkpoints", "tracker", "plots"})
    """What a resumed run may have other values of: what is written, and where."""

    @property
    def finished(self) -> bool:
        """Whether the run that is there has ended well, and is not to be made anew."""
        return not self._overwrite and self.final.is_dir() and (self.path / SUMMARY).exists()

    def last_checkpoint(self) -> Path | None:
        """TRL's newest whole checkpoint, or None."""
        return last_checkpoint(self.checkpoints)

    def remove_checkpoints(self) -> None:
        """What is no longer needed once the policy is there."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
