"""The folder of a run that trains a policy.

config.toml    the settings, resolved
metrics.jsonl  a line for each step, and for each evaluation
samples.jsonl  completions to read, from before, while and after it learns
checkpoints/   for --resume
plots/         the metrics as pictures
final/         the policy: a folder that transformers and vLLM load
reward/        of DPO: the reward that it implies, for `guerdon serve reward`
summary.json   what was measured; written last
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guerdon.models import apply_umask
from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.run_folder import SUMMARY, RunFolder, sync, write_json

SAMPLES = "samples.jsonl"
FINAL = "final"
REWARD = "reward"


class PolicyFolder(RunFolder):
    """A run's folder whose result is a policy in `final/`."""

    @property
    def samples(self) -> Path:
        """The file of completions to read."""
        return self.path / SAMPLES

    @property
    def final(self) -> Path:
        """The policy, once the run has ended well."""
        return self.path / FINAL

    @property
    def reward(self) -> Path:
        """DPO: the reward that the policy implies, for `guerdon serve reward`."""
        return self.path / REWARD

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, whole."""
        write_json(self.path / SUMMARY, summary)

    def publish_final(self, write: Callable[[Path], None]) -> None:
        """Put the policy into final/, whole or not at all.

        Args:
            write: saves the policy and its tokenizer into the empty folder that it is given.

        Raises:
            OutputError: the system refuses.
        """
        part, old = self.path / ".final.part", self.path / ".final.old"
        try:
            for leftover in (part, old):
                shutil.rmtree(leftover, ignore_errors=True)
            part.mkdir(parents=True)
            write(part)
            apply_umask(*part.rglob("*.safetensors"))
            for file in part.rglob("*"):
                sync(file)
            sync(part)
            if self.final.exists():
                self.final.rename(old)
            part.rename(self.final)
            sync(self.path)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"can't write {self.final}: {error}") from error
