"""Makes a `RewardModel` of what an operator names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from guerdon.models import ModelNotFound, resolve_model
from guerdon.reward.models.load_threads import Check, Loader
from guerdon.reward.types import EngineLost, RewardModel
from guerdon.serving.errors import NotFound, Unavailable


def new_loader(load_folder: Callable[[Path, str, Check], RewardModel]) -> Loader:
    """A loader of folders, hub names and embedded names.

    Args:
        load_folder: loads a folder under a name.
    """

    def load(path: str, name: str, check: Check) -> RewardModel:
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
