"""Folders of runs by a trainer of `transformers`, which keeps its checkpoints there."""

from __future__ import annotations

import abc
import shutil
from pathlib import Path

from guerdon.trainer.common.policy_folder import PolicyFolder
from guerdon.trainer.common.run_folder import SUMMARY, RunFolder, last_checkpoint


class FineTuneFolder(RunFolder, abc.ABC):
    """The folder of a fine-tuning run. Making the object looks only; `begin` writes."""

    may_change = frozenset({"output", "keep_checkpoints", "tracker", "plots"})

    @property
    @abc.abstractmethod
    def finished(self) -> bool:
        """Whether a run that ended well is there."""

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return last_checkpoint(self.checkpoints)

    def remove_checkpoints(self) -> None:
        """Remove what is no longer needed once the model is there."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


class TunedPolicyFolder(FineTuneFolder, PolicyFolder):
    """The folder of an SFT, DPO or ORPO run: it holds a policy in the end."""

    @property
    def finished(self) -> bool:
        """Whether the run that is there has ended well."""
        return self.final.is_dir() and (self.path / SUMMARY).exists()
