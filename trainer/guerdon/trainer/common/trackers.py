"""TensorBoard and Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.run_folder import MEMBERS


class Tracked(Protocol):
    """The settings of a run that can be tracked: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    algorithm: ClassVar[str]

    @property
    def tracker(self) -> tuple[str, ...]:
        """The trackers' names."""


_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        SettingsError: names the tracker.
    """
    for name in names:
        if name not in _PACKAGES:
            raise SettingsError(f"tracker is {name!r}, not {' or '.join(_PACKAGES)}")
        if not any(find_spec(package) for package in _PACKAGES[name]):
            package = _PACKAGES[name][0]
            raise SettingsError(f"tracker {name} is not installed: pip install {package}")


class Trackers:
    """Sends every metrics line to the trackers of the settings.

    Args:
        settings: with `tracker`.
        folder: the run's; TensorBoard writes to `tensorboard/` in it.
        done: steps of earlier parts of the run; TensorBoard forgets what came after them.
        main: whether this is the process that tracks.

    Raises:
        SettingsError: a tracker is unknown or not installed.
    """

    def __init__(
        self, settings: Tracked, folder: Path, *, done: int = 0, main: bool = True
    ) -> None:
        check_trackers(settings.tracker)
        self._trackers = [_start(name, settings, folder, done) for name in settings.tracker if main]

    def log(self, row: Mapping[str, float]) -> None:
        """Send a metrics line."""
        step = int(row["step"])
        values = {key: value for key, value in row.items() if key != "step"}
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def finish(self) -> None:
        """Write out what is left."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _start(name: str, settings: Tracked, folder: Path, done: int) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    values = {
        key: ", ".join(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(settings).items()
    } | {"algorithm": settings.algorithm}
    if name == "tensorboard":
        purge = done + 1 if done else 0
        tracker = TensorBoardTracker("tensorboard", logging_dir=str(folder), purge_step=purge)
    else:
        tracker = WandBTracker("guerdon", name=_name(folder.resolve()), dir=str(folder))
    tracker.start()
    tracker.store_init_configuration(values)
    return tracker


def _name(folder: Path) -> str:
    """The name of a run, for people; the folder of an ensemble's member has its number alone."""
    member = folder.parent.name == MEMBERS
    return f"{folder.parents[1].name}-{folder.name}" if member else folder.name
