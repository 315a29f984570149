"""measured.jsonl: what is found of each completion beside its rewards, written as it comes.

{"task": uid, "heldout": [score, …], "harm": [score, …]}           a group in each line
{"task": uid, "logprob": [log π, …], "mismatch": [nats, …]}         later ones add to it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.measuring.policy_evaluation import PerSample
from guerdon.trainer.common.run_folder import append_row, kept_rows
from guerdon.trainer.common.services.types import Group

MEASURED = "measured.jsonl"
HELDOUT = "heldout"
HARM = "harm"
LOGPROB = "logprob"
"""log π of the whole completion in nats, by the policy."""
REFERENCE = "reference_logprob"
MISMATCH = "mismatch"
"""Σ_t k3 of KL(sampler ‖ policy): how far the sampler drew from another policy."""


class Columns:
    """Numbers of each sample of each group, by name, on the disk and in memory.

    Args:
        path: the file; what is there of an earlier part of the run is taken up.
        samples: in a group.

    Raises:
        OutputError: what is there can't be.
    """

    def __init__(self, path: Path, samples: int) -> None:
        self._path, self._samples = path, samples
        self._values: dict[str, dict[int, list[float]]] = {}
        try:
            for row in kept_rows(path):
                self._take(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise OutputError(f"{path} is damaged: {error!r}") from error

    def add(self, task: int, values: Mapping[str, Sequence[float]]) -> None:
        """Write what was found of a group; it is on the disk when this returns."""
        row = {"task": task, **{name: list(found) for name, found in values.items()}}
        append_row(self._path, row)
        self._take(row)

    def missing(self, name: str, groups: Sequence[Group]) -> list[Group]:
        """The groups of which this is not known yet."""
        known = self._values.get(name, {})
        return [group for group in groups if group.task.uid not in known]

    def of(self, name: str, groups: Sequence[Group]) -> PerSample:
        """A column, in the groups' order; all of them have it."""
        return [self._values[name][group.task.uid] for group in groups]

    def _take(self, row: Mapping[str, Any]) -> None:
        for name in row.keys() - {"task"}:
            values = [float(value) for value in row[name]]
            if len(values) != self._samples:
                raise ValueError(f"{name} of task {row['task']} has {len(values)} numbers")
            self._values.setdefault(name, {})[int(row["task"])] = values
