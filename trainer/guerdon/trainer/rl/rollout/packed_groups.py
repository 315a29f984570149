"""Tasks and groups as trees of a few arrays, for checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guerdon.data import RowError, read_template_inputs
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task


def pack_tasks(tasks: Sequence[Task]) -> dict[str, Any]:
    """Tasks as a tree for `Checkpoints.save`."""
    return {
        "uid": [int(task.uid) for task in tasks],
        "row": [_row(task.row) for task in tasks],
        "prompt_ids": [task.prompt_ids_P for task in tasks],
        "opening": [task.opening for task in tasks],
    }


def unpack_tasks(tree: dict[str, Any]) -> list[Task]:
    """The tasks that `pack_tasks` was given."""
    return [
        Task(
            uid,
            PromptRow(
                row["index"],
                tuple(row["turns"]),
                row["answer"],
                row["extra"],
                row.get("text"),
                read_template_inputs(row, RowError),
            ),
            ids,
            text,
        )
        for uid, row, ids, text in zip(
            tree["uid"], tree["row"], tree["prompt_ids"], tree["opening"], strict=True
        )
    ]


def pack_groups(groups: Sequence[Group]) -> dict[str, Any]:
    """Groups as a tree for `Checkpoints.save`: the tokens of all samples in one array each."""
    samples = [sample for group in groups for sample in group.samples]
    return {
        "tasks": pack_tasks([group.task for group in groups]),
        "sizes": [len(group.samples) for group in groups],
        "index": [int(sample.index) for sample in samples],
        "tokens": [sample.tokens for sample in samples],
        "response_ids": _joined([s.response_ids_T for s in samples], np.int32),
        "behaviour_logprobs": _joined([s.behaviour_logprobs_T for s in samples], np.float32),
        "versions": _joined([s.versions_T for s in samples], np.int32),
        "finished": [bool(sample.finished) for sample in samples],
        "text": [sample.text for sample in samples],
        "reward": [float(sample.reward) for sample in samples],
        "parts": [{k: float(v) for k, v in sample.parts.items()} for sample in samples],
        "refused": [bool(sample.refused) for sample in samples],
    }


def unpack_groups(tree: dict[str, Any]) -> list[Group]:
    """The groups that `pack_groups` was given; a sample shares its task's prompt."""
    ends = np.cumsum(np.array(tree["tokens"], dtype=np.int64))[:-1]
    columns = [
        np.split(tree[name], ends) for name in ("response_ids", "behaviour_logprobs", "versions")
    ]
    found, at = [], 0
    for task, size in zip(unpack_tasks(tree["tasks"]), tree["sizes"], strict=True):
        samples = [_sample(tree, columns, task, place) for place in range(at, at + size)]
        found.append(Group(task, samples))
        at += size
    return found


def _sample(tree: dict[str, Any], columns: list[list[Any]], task: Task, place: int) -> Sample:
    response_ids, logprobs, versions = (column[place].copy() for column in columns)
    return Sample(
        task_uid=task.uid,
        index=tree["index"][place],
        prompt_ids_P=task.prompt_ids_P,
        response_ids_T=response_ids,
        behaviour_logprobs_T=logprobs,
        versions_T=versions,
        finished=tree["finished"][place],
        text=tree["text"][place],
        reward=tree["reward"][place],
        parts=tree["parts"][place],
        refused=tree["refused"][place],
    )


def _row(row: PromptRow) -> dict[str, Any]:
    return {
        "index": int(row.index),
        "turns": [dict(turn) for turn in row.turns],
        "answer": row.answer,
        "extra": dict(row.extra),
        "text": row.text,
        **row.inputs.columns(),
    }


def _joined(arrays: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate([np.asarray(a, dtype) for a in arrays]) if arrays else np.zeros(0, dtype)
