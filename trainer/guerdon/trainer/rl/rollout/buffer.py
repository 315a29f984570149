"""The buffer between sampling and learning: bounded by staleness, counted per token.

Pure bookkeeping: no clock, no tasks, no network. Versions are those of the policy's weights.

The bound is AReaL's (arXiv:2505.24298, section 5.1: at most (version + η + 1) · batch tasks may
have been started), said in terms of what is outstanding, so that it also holds when a task is
sampled again. With k groups in a step, the group that has m outstanding ones before it is
consumed m // k steps from now, by weights of at most `next_version + m // k`; it may be started
under version s if that is at most s + η.

A group that can't wait for the next step is waited for by this one. Leaving it behind would
throw its tokens away, and by choosing the quick ones would teach the policy to be short.

A checkpoint holds its groups as trees of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guerdon.data import RowError, read_template_inputs
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of asking for a step's groups."""

    groups: list[Group] | None
    """A step's groups, or None when more must come first."""
    expired: list[Task]
    """Tasks whose samples were too old, and are no longer in the buffer."""


class Buffer:
    """Groups that wait to be trained on, and the tasks that are being sampled.

    Args:
        max_staleness: η, weight versions that a token may be behind at consumption.
        ordered: hand groups out in the order of their uids only (deterministic runs).
    """

    def __init__(self, max_staleness: int, *, ordered: bool = False) -> None:
        self._eta = max_staleness
        self._ordered = ordered
        self._groups: dict[int, Group] = {}
        self._in_flight: dict[int, int] = {}

    def __len__(self) -> int:
        """Groups that wait."""
        return len(self._groups)

    @property
    def in_flight(self) -> int:
        """Tasks that are being sampled or scored."""
        return len(self._in_flight)

    @property
    def uids(self) -> frozenset[int]:
        """The tasks of the groups that wait."""
        return frozenset(self._groups)

    def may_start(
        self, sampler_version: int, next_version: int, per_step: int, last: float = math.inf
    ) -> bool:
        """Whether a group that is started now can be consumed, and within the bound.

        Args:
            sampler_version: of the weights that would draw its first token.
            next_version: of the weights that the next step's groups are for.
            per_step: groups in a step.
            last: version of the weights that the last step's groups are for.
        """
        ahead = (len(self._groups) + len(self._in_flight)) // per_step
        consumed = next_version + ahead
        return consumed <= last and consumed - sampler_version <= self._eta

    def start(self, task: Task, sampler_version: int) -> None:
        """A task is sampled from now on, with weights of at least this version.

        Called again for the same task when its sampling begins anew.
        """
        assert task.uid not in self._groups, f"task {task.uid} is sampled already"
        self._in_flight[task.uid] = sampler_version

    def drop(self, task: Task) -> None:
        """A task is no longer being sampled, and nothing came of it."""
        del self._in_flight[task.uid]

    def put(self, group: Group) -> None:
        """A task's samples are there."""
        del self._in_flight[group.task.uid]
        assert group.samples
        assert np.isfinite(group.rewards_G).all(), "a group without rewards"
        self._groups[group.task.uid] = group

    def take(self, count: int, version: int) -> Taken:
        """A step's groups, the oldest first, each token at most η versions behind.

        Args:
            count: groups in a step.
            version: of the weights that will be trained.
        """
        expired = [
            group.task
            for group in self._groups.values()
            if version - group.oldest_version > self._eta
        ]
        for task in expired:
            del self._groups[task.uid]
        chosen = self._first(count, version)
        if chosen is not None:
            for group in chosen:
                assert all(fresh(sample, version, self._eta) for sample in group.samples)
                del self._groups[group.task.uid]
        return Taken(chosen, sorted(expired, key=lambda task: task.uid))

    def _first(self, count: int, version: int) -> list[Group] | None:
        if self._ordered:
            first = sorted([*self._groups, *self._in_flight])[:count]
            if len(first) < count or not self._groups.keys() >= set(first):
                return None
            return [self._groups[uid] for uid in first]
        last_chance = version - self._eta  # what these drew is too old for the next step
        if any(started <= last_chance for started in self._in_flight.values()):
            return None
        if len(self._groups) < count:
            return None
        oldest_first = sorted(
            self._groups.values(), key=lambda group: (group.oldest_version, group.task.uid)
        )
        return oldest_first[:count]

    def state_dict(self) -> dict[str, Any]:
        """All groups that wait, as a tree for `Checkpoints.save`.

        Tasks in flight are not in it: they are sampled again (see `PromptOrder.state_dict`).
        """
        return pack_groups([self._groups[uid] for uid in sorted(self._groups)])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the groups of a saved state."""
        self._groups = {group.task.uid: group for group in unpack_groups(state)}
        self._in_flight = {}


def fresh(sample: Sample, version: int, max_staleness: int) -> bool:
    """Whether no token of a sample is more than η versions behind."""
    return bool((version - sample.versions_T <= max_staleness).all())


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
