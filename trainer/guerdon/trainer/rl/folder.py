"""The folder of a reinforcement-learning run.

config.toml    the settings, resolved
metrics.jsonl  a line for each step, and for each evaluation
samples.jsonl  some completions of each step, and all of the evaluations before and after
checkpoints/   for --resume
plots/         the metrics as pictures
final/         the policy: a folder that transformers and vLLM load
summary.json   what was measured; written last
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guerdon.trainer.errors import OutputError
from guerdon.trainer.rl.rewards import parse_reward
from guerdon.trainer.rl.settings import RunSettings
from guerdon.trainer.run_folder import (
    CHECKPOINTS,
    METRICS,
    PLOTS,
    SETTINGS,
    SUMMARY,
    RunFolder,
    rows_until,
    sync,
    write_whole,
)

SAMPLES = "samples.jsonl"
FINAL = "final"


class RLFolder(RunFolder):
    """A run's folder. Making the object looks only; `begin` writes.

    Args:
        settings: of the run that is about to start.
        resume: go on with what is there.
        overwrite: remove what is there, when it is a run of ours.
        main: whether this is the process that writes; the others neither look nor write.

    Raises:
        OutputError: something is there and neither was asked, or it can't be used so.
    """

    may_change = frozenset({
        "output", "steps", "sampler", "reward", "heldout_reward", "publish", "shared_dir",
        "patience", "request_timeout", "token_file", "admin_token_file", "tls", "tls_ca",
        "checkpoint_every", "keep_checkpoints", "sample_rows", "tracker", "plots",
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
        self._main = main
        self._steps = settings.steps
        self._anew = overwrite
        if main:
            super().__init__(settings, resume=resume, overwrite=overwrite)
        else:
            self.path = Path(settings.output)

    def begin(self) -> None:
        """Make the folder, remove what shall be overwritten, and write the settings.

        Raises:
            OutputError: the system refuses.
        """
        if self._main:
            super().begin()

    @property
    def metrics(self) -> Path:
        """Where `MetricsLog` writes."""
        return self.path / METRICS

    @property
    def samples(self) -> Path:
        """Where `SampleTable` writes."""
        return self.path / SAMPLES

    @property
    def checkpoints(self) -> Path:
        """Where `Checkpoints` writes."""
        return self.path / CHECKPOINTS

    @property
    def plots(self) -> Path:
        """Where `draw_plots` writes."""
        return self.path / PLOTS

    @property
    def final(self) -> Path:
        """The policy, once the run has ended well."""
        return self.path / FINAL

    @property
    def finished(self) -> bool:
        """Whether the run that is there made all the steps that are asked for now."""
        if self._anew or not self.final.is_dir() or not (self.path / SUMMARY).exists():
            return False
        return int(self.summary()["steps"]) >= self._steps

    def summary(self) -> dict[str, Any]:
        """What summary.json says.

        Raises:
            OutputError: it can't be read.
        """
        try:
            found: dict[str, Any] = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"can't read {self.path / SUMMARY}: {error}") from error
        return found

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, whole."""
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        write_whole(self.path / SUMMARY, text + "\n")

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Forget the metrics and samples that came after a checkpoint's step; the metrics left."""
        rows_until(self.samples, step)
        return self.metrics_until(step)

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

    def _check_same(self) -> None:
        super()._check_same()
        before = tomllib.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        if self._steps < before.get("steps", 0):
            raise OutputError(
                f"{self.path} was begun with steps = {before['steps']}, and they can only grow"
            )
        for key in ("reward", "heldout_reward"):
            was, now = before.get(key, []), getattr(self._settings, key)
            if _models(was) != _models(now):
                raise OutputError(
                    f"{self.path} was begun with {key} = {was!r}, not {list(now)!r}: a resumed "
                    "run may find the same models at another address, but not other models"
                )


def _models(rewards: Sequence[str]) -> list[tuple[float, str]]:
    """Which models give rewards, wherever they are served."""
    return [(spec.weight, spec.model) for spec in map(parse_reward, rewards)]
