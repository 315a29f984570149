"""The folder of an SFT, DPO or ORPO run: as that of every run that trains a policy."""

from __future__ import annotations

from guerdon.trainer.common.policy_folder import PolicyFolder
from guerdon.trainer.common.run_folder import SUMMARY
from guerdon.trainer.common.trl.folder import FineTuneFolder


class TunedPolicyFolder(FineTuneFolder, PolicyFolder):
    """A run's folder. Making the object looks only; `begin` writes."""

    @property
    def finished(self) -> bool:
        """Whether the run that is there has ended well."""
        return self.final.is_dir() and (self.path / SUMMARY).exists()
