"""Makes a `RewardModel` of what an operator names; the one place that brings in torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from guerdon.models import ManifestError, ModelNotFound, resolve_model
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.models.load_threads import Check, Loader
from guerdon.reward.types import DeviceLost, RewardModel
from guerdon.serving.errors import CheckpointRefused, EngineDied, NotFound


def new_loader(settings: EngineSettings) -> Loader:
    """A loader of folders, hub names and embedded names.

    Models are fetched side by side and made one after another: making one needs memory and all
    cores, and `transformers` sets torch's default data type for the whole process meanwhile.
    """
    making = threading.Lock()

    def load(path: str, name: str, check: Check) -> RewardModel:
        from transformers.utils import logging

        from guerdon.reward.kinds import load_model

        logging.disable_progress_bar()  # a bar is no line of a log
        try:
            folder = resolve_model(path)
        except ModelNotFound as error:
            raise NotFound(str(error)) from error
        check()
        try:
            with _turn(making, check):
                return load_model(folder, name=name, settings=settings, check=check)
        except ManifestError as error:
            raise CheckpointRefused(f"{folder}: {error}") from error
        except DeviceLost as error:
            raise EngineDied(str(error)) from error

    return load


@contextmanager
def _turn(making: threading.Lock, check: Check) -> Iterator[None]:
    """Wait for the lock, or for the load's end."""
    while not making.acquire(timeout=0.1):
        check()
    try:
        yield
    finally:
        making.release()
