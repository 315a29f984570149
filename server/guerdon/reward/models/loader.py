"""Makes a `RewardModel` of what an operator names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from guerdon.models import ModelNotFound, resolve_model
from guerdon.reward.judge.judge import Judge
from guerdon.reward.judge.settings import read_key, read_settings
from guerdon.reward.models.load_threads import Check, Loader
from guerdon.reward.models.revision import ServedModel
from guerdon.reward.types import EngineLost, RewardModel
from guerdon.serving.errors import CheckpointRefused, NotFound, Unavailable
from guerdon.settings import SettingsError

JUDGE_SUFFIX = ".toml"
"""What the path of a judge's settings ends with."""


def new_loader(load_folder: Callable[[Path, str, Check], RewardModel]) -> Loader:
    """A loader of folders, hub names and embedded names, and of judges by their settings file.

    Args:
        load_folder: loads a folder under a name.
    """

    def load(path: str, name: str, check: Check) -> ServedModel:
        if path.endswith(JUDGE_SUFFIX):
            return load_judge(Path(path).expanduser(), name)
        try:
            folder = resolve_model(path)
        except ModelNotFound as error:
            raise NotFound(str(error)) from error
        check()
        try:
            return load_folder(folder, name, check)
        except EngineLost as error:
            raise Unavailable(str(error)) from error

    return load


def load_judge(file: Path, name: str) -> Judge:
    """The judge that a settings file describes. Its endpoint is not asked.

    Raises:
        NotFound: there is no such file.
        CheckpointRefused: a setting can't be; the text names it.
    """
    if not file.is_file():
        raise NotFound(f"there is no file {str(file)!r}")
    try:
        settings = read_settings(file)
        return Judge(name, settings, read_key(settings))
    except SettingsError as error:
        raise CheckpointRefused(f"the judge {file}: {error}") from error
