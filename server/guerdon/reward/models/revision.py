"""A loaded revision of a model, and the leases that keep it in memory."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from guerdon.reward.judge.judge import Judge
from guerdon.reward.types import ModelInfo, RewardModel

ServedModel = RewardModel | Judge
"""What a name may stand for: what engines compute, or a judge, which is asked."""


class Revision:
    """A loaded revision and the leases on it."""

    _numbers = itertools.count()

    def __init__(self, model: ServedModel, path: str) -> None:
        self.model = model
        self.path = path
        """What was loaded: a folder, hub name, embedded name, or a judge's settings file."""
        self.key = f"{model.info.name}@{model.info.revision}#{next(self._numbers)}"
        """Unique to this load, for the dispatcher: a batch holds one key."""
        self.loaded_at = time.time()
        self.current = False
        self._leases = 0
        """Requests that it is being used for."""
        self._free = asyncio.Event()
        self._free.set()

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self.model.info

    @contextmanager
    def lease(self) -> Iterator[ServedModel]:
        """Keep the model in memory while it is used."""
        self._leases += 1
        self._free.clear()
        try:
            yield self.model
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._free.set()

    async def wait_free(self) -> None:
        """Return when nobody uses it any more."""
        await self._free.wait()
