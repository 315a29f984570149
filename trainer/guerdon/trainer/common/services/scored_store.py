"""scored.jsonl: completions with their rewards, written as they come.

    {"prompts": SHA-256, "samples": n}                              the first line
    {"task": uid, "samples": [{tokens, log-probabilities, …}, …]}   a group in each other

A run that is killed while it samples goes on with the groups that are here; a line in whose
middle it was killed is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.run_folder import append_row, kept_rows, write_whole
from guerdon.trainer.common.services.prompts import Prompts
from guerdon.trainer.common.services.types import Group, Sample, Task

SCORED = "scored.jsonl"


class ScoredGroups:
    """The scored groups of a run, on the disk and in memory.

    Args:
        path: the file; what is there of an earlier part of the run is taken up.
        prompts: of the run.
        samples_per_prompt: completions in a group.

    Raises:
        OutputError: what is there is of other prompts, or can't be.
    """

    def __init__(self, path: Path, prompts: Prompts, samples_per_prompt: int) -> None:
        self._path = path
        self.samples_per_prompt = samples_per_prompt
        self._head = {"prompts": prompts.sha256, "samples": samples_per_prompt}
        self._tasks = {task.uid: task for task in prompts.tasks()}
        self._groups: dict[int, Group] = {}
        if path.exists():
            self._read()

    def __len__(self) -> int:
        """Groups that are there."""
        return len(self._groups)

    @property
    def groups(self) -> list[Group]:
        """The scored groups in the order of their tasks, whichever came first."""
        return [self._groups[uid] for uid in sorted(self._groups)]

    @property
    def missing(self) -> list[Task]:
        """The tasks that have no group yet, in their order."""
        return [task for uid, task in self._tasks.items() if uid not in self._groups]

    def begin(self) -> None:
        """Write the first line, unless groups are there."""
        if not self._groups:
            write_whole(self._path, json.dumps(self._head) + "\n")

    def add(self, group: Group) -> None:
        """Write a scored group; it is on the disk when this returns."""
        values = [_values(sample) for sample in group.samples]
        append_row(self._path, {"task": group.task.uid, "samples": values})
        self._groups[group.task.uid] = group

    def _read(self) -> None:
        rows = kept_rows(self._path)
        head = rows.pop(0) if rows else {}
        for key, text in (("prompts", "other prompts"), ("samples", "another samples_per_prompt")):
            if rows and head.get(key) != self._head[key]:
                raise OutputError(f"{self._path} was sampled with {text}: begin with --overwrite")
        try:
            self._groups = {row["task"]: self._group(row) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"{self._path} is damaged: {error!r}") from error

    def _group(self, row: Mapping[str, Any]) -> Group:
        task = self._tasks[row["task"]]
        samples = [_sample(task, values) for values in row["samples"]]
        if len(samples) != self.samples_per_prompt:
            raise ValueError(f"task {task.uid} has {len(samples)} samples")
        return Group(task, samples)


def _values(sample: Sample) -> dict[str, Any]:
    return {
        "index": int(sample.index),
        "response_ids": sample.response_ids_T.tolist(),
        "logprobs": sample.behaviour_logprobs_T.tolist(),
        "versions": sample.versions_T.tolist(),
        "finished": bool(sample.finished),
        "text": sample.text,
        "reward": float(sample.reward),
        "parts": {name: float(value) for name, value in sample.parts.items()},
        "refused": bool(sample.refused),
    }


def _sample(task: Task, values: Mapping[str, Any]) -> Sample:
    return Sample(
        task_uid=task.uid,
        index=values["index"],
        prompt_ids_P=task.prompt_ids_P,
        response_ids_T=np.array(values["response_ids"], dtype=np.int32),
        behaviour_logprobs_T=np.array(values["logprobs"], dtype=np.float32),
        versions_T=np.array(values["versions"], dtype=np.int32),
        finished=values["finished"],
        text=values["text"],
        reward=values["reward"],
        parts=dict(values["parts"]),
        refused=values["refused"],
    )
