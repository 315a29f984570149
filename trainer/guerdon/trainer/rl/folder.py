"""The folder of a reinforcement-learning run: what may be there before, and what may change."""

from __future__ import annotations

import tomllib
from typing import Any

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.policy_folder import PolicyFolder
from guerdon.trainer.common.run_folder import SETTINGS, SUMMARY, kept_rows
from guerdon.trainer.common.services.reward_specs import check_same_models
from guerdon.trainer.common.services.settings import SERVICES
from guerdon.trainer.rl.settings import RunSettings


class RLFolder(PolicyFolder):
    """A run's folder; see `RunFolder`."""

    may_change = frozenset({
        "output", "steps", "sampler", "reward", "heldout_reward", "publish", "shared_dir",
        *SERVICES, "admin_token_file", "checkpoint_every", "keep_checkpoints", "sample_rows",
        "tracker", "plots",
    })  # fmt: skip
    """What a resumed run may have other values of: where the services are, and what is kept."""

    def __init__(
        self,
        settings: RunSettings,
        *,
        resume: bool = False,
        overwrite: bool = False,
        main: bool = True,
    ) -> None:
        self._steps = settings.steps
        super().__init__(settings, resume=resume, overwrite=overwrite, main=main)

    @property
    def finished(self) -> bool:
        """Whether the run that is there made all the steps that are asked for now."""
        if self._overwrite or not self.final.is_dir() or not (self.path / SUMMARY).exists():
            return False
        return int(self.summary()["steps"]) >= self._steps

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget the metrics and samples that came after a checkpoint's step; the metrics left."""
        kept_rows(self.samples, lambda row: row["step"] <= step)
        return self.metrics_until(step)

    def _check_same(self) -> None:
        super()._check_same()
        before = tomllib.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        if self._steps < before.get("steps", 0):
            raise OutputError(
                f"{self.path} was begun with steps = {before['steps']}, and they can only grow"
            )
        check_same_models(self.path, before, self._settings, ("reward", "heldout_reward"))
