"""Makes a `RewardModel` of what an operator names; the one place that brings in torch."""

from __future__ import annotations

from guerdon.models import ManifestError, ModelNotFound, resolve_model
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.registry import Loader
from guerdon.reward.types import RewardModel
from guerdon.serving.errors import CheckpointRefused, NotFound


def new_loader(settings: EngineSettings) -> Loader:
    """A loader of folders, hub names and embedded names."""

    def load(path: str, name: str) -> RewardModel:
        from transformers.utils import logging

        from guerdon.reward.kinds import load_model

        logging.disable_progress_bar()  # a bar is no line of a log
        try:
            folder = resolve_model(path)
        except ModelNotFound as error:
            raise NotFound(str(error)) from error
        try:
            return load_model(folder, name=name, settings=settings)
        except ManifestError as error:
            raise CheckpointRefused(f"{folder}: {error}") from error

    return load
