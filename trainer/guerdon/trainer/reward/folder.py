"""The folder of a reward model's run, which is the model's too.

`RewardFolder` is that of `guerdon train reward`, and of each member of an `EnsembleFolder`:

    config.toml    the settings, resolved
    metrics.jsonl  a line for each logged step
    checkpoints/   for --resume; removed when the run ends well
    summary.json   what was measured
    plots/         the same as pictures
    guerdon.json, config.json, tokenizer…, model.safetensors   the model

The model's files are written aside and moved in one by one, the weights last: a folder
without weights can't be served, so no half model ever can.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from guerdon.models import MANIFEST_NAME, apply_umask
from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.run_folder import SETTINGS, SUMMARY, sync, write_json
from guerdon.trainer.common.trl.folder import FineTuneFolder

_PART = ".model.part"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class RewardFolder(FineTuneFolder):
    """The folder of `guerdon train reward`, which is the model's too."""

    @property
    def finished(self) -> bool:
        """Whether a whole model is there."""
        weights = any((self.path / name).exists() for name in _WEIGHTS)
        return weights and (self.path / MANIFEST_NAME).exists()

    def _clear(self) -> None:
        for name in _WEIGHTS:  # first what makes it servable
            (self.path / name).unlink(missing_ok=True)
        super()._clear()

    def publish(self, model: Any, tokenizer: Any, manifest: Any, summary: dict[str, Any]) -> None:
        """Put the model and the summary into the folder; the weights appear last.

        Raises:
            OutputError: the system refuses.
        """
        try:
            self._publish(model, tokenizer, manifest, summary)
        except OSError as error:
            raise OutputError(f"can't write to {self.path}: {error}") from error

    def _publish(self, model: Any, tokenizer: Any, manifest: Any, summary: dict[str, Any]) -> None:
        part = self.path / _PART
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        model.save_pretrained(part, safe_serialization=True)
        tokenizer.save_pretrained(part)
        manifest.write(part)
        write_json(part / SUMMARY, summary)
        apply_umask(*part.glob("*.safetensors"))
        last = {name: i for i, name in enumerate(_WEIGHTS)}
        for file in part.iterdir():
            sync(file)
        for file in sorted(part.iterdir(), key=lambda f: (last.get(f.name, -1), f.name)):
            file.replace(self.path / file.name)
        sync(self.path)
        part.rmdir()


class EnsembleFolder(FineTuneFolder):
    """The folder of `guerdon train reward --ensemble N`.

    Each member has a folder of its own in `members/`; the ensemble's `guerdon.json` comes last,
    and without it the folder can't be served.
    """

    @property
    def finished(self) -> bool:
        """Whether the ensemble is whole."""
        return (self.path / MANIFEST_NAME).exists()

    def _clear(self) -> None:
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)  # first what makes it servable
        super()._clear()

    def member(self, settings: Any) -> RewardFolder:
        """The folder of a member; what is there of it is gone on with."""
        path = Path(settings.output)
        resume = (path / SETTINGS).exists()
        if not resume and self._main:  # it may have ended while it wrote them
            (path / f".{SETTINGS}.part").unlink(missing_ok=True)
        return RewardFolder(settings, resume=resume, overwrite=False, main=self._main)

    def publish(self, manifest: Any, summary: dict[str, Any]) -> None:
        """Write the summary, and what makes it an ensemble.

        Raises:
            OutputError: the system refuses.
        """
        try:
            write_json(self.path / SUMMARY, summary)
            sync(self.path / SUMMARY)
            manifest.write(self.path)
            sync(self.path / MANIFEST_NAME)
            sync(self.path)
        except OSError as error:
            raise OutputError(f"can't write to {self.path}: {error}") from error
