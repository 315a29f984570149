"""The staleness bound, in every interleaving that a machine can think of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guerdon.trainer.common.services.prompts import PromptOrder, Prompts
from guerdon.trainer.common.services.types import Group, PromptRow, Sample, Task
from guerdon.trainer.rl.rollout.buffer import Buffer
from guerdon.trainer.rl.state_files import read_tree, write_tree


def bare_order(count: int = 7) -> PromptOrder:
    rows = tuple(PromptRow(i, ({"role": "user", "content": str(i)},)) for i in range(count))
    ids = tuple(np.array([i], dtype=np.int32) for i in range(count))
    return PromptOrder(
        Prompts("-", "", rows, tuple(range(1, count + 1)), ids, ("",) * count, 0), seed=1
    )


def make_group(task: Task, *versions: list[int]) -> Group:
    """A sample for each list of its tokens' versions."""
    samples = [
        Sample(
            task.uid,
            i,
            task.prompt_ids_P,
            np.arange(len(spans), dtype=np.int32) + 10 * i,
            -np.arange(len(spans), dtype=np.float32),
            np.array(spans, dtype=np.int32),
            finished=bool(i % 2),
            text=f"text {i}",
            reward=float(i),
            parts={"m": float(i)},
        )
        for i, spans in enumerate(versions)
    ]
    return Group(task, samples)


def filled(eta: int, *groups: list[list[int]], ordered: bool = False) -> tuple[Buffer, PromptOrder]:
    buffer, order = Buffer(eta, ordered=ordered), bare_order()
    for versions in groups:
        task = order.next()
        buffer.start(task, versions[0][0])
        buffer.put(make_group(task, *versions))
    return buffer, order


def test_one_old_token_makes_its_group_too_old() -> None:
    buffer, _ = filled(1, [[4, 4]], [[4, 4], [3, 4]], [[2, 4], [4, 4]], [[4]])
    taken = buffer.take(3, 4)
    assert taken.groups is not None
    assert [group.task.uid for group in taken.groups] == [1, 0, 3]  # the oldest weights first
    assert [task.uid for task in taken.expired] == [2]
    assert len(buffer) == 0


def test_too_few_are_kept_for_later() -> None:
    buffer, _ = filled(0, [[4]], [[4]])
    assert buffer.take(3, 4).groups is None
    assert len(buffer) == 2
    assert buffer.take(2, 4).groups


def test_a_group_that_cannot_wait_is_waited_for() -> None:
    buffer, order = filled(1, [[4]], [[4]], [[4]])
    slow = order.next()
    buffer.start(slow, 3)
    assert buffer.take(2, 4).groups is None
    buffer.put(make_group(slow, [3, 4, 4]))
    groups = buffer.take(2, 4).groups
    assert groups is not None
    assert [group.task.uid for group in groups] == [3, 0]
    buffer.start(order.next(), 4)  # may wait: at the next step it is one version old
    assert buffer.take(2, 4).groups


def test_ordered_is_by_uid_and_waits_for_the_first() -> None:
    buffer, order = Buffer(2, ordered=True), bare_order()
    first, second, third = order.next(), order.next(), order.next()
    for task in (first, second, third):
        buffer.start(task, 1)
    buffer.put(make_group(second, [1]))
    buffer.put(make_group(third, [1]))
    assert buffer.take(2, 1).groups is None
    buffer.put(make_group(first, [1]))
    groups = buffer.take(2, 1).groups
    assert groups is not None
    assert [group.task.uid for group in groups] == [0, 1]


@pytest.mark.parametrize("eta", [0, 1, 4])
def test_as_many_may_be_started_as_areal_allows(eta: int) -> None:
    per_step, buffer, order = 3, Buffer(eta), bare_order()
    started = 0
    while buffer.may_start(1, 1, per_step):
        buffer.start(order.next(), 1)
        started += 1
    assert started == (eta + 1) * per_step
    assert not buffer.may_start(1, 2, per_step)
    assert buffer.may_start(2, 2, per_step) is False  # none was consumed yet


def test_a_group_without_rewards_is_refused() -> None:
    buffer, order = Buffer(0), bare_order()
    task = order.next()
    buffer.start(task, 1)
    group = make_group(task, [1])
    group.samples[0].reward = float("nan")
    with pytest.raises(AssertionError, match="without rewards"):
        buffer.put(group)


def roundtrip(state: dict[str, Any]) -> Any:
    """A state as checkpoints hold it."""
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder) / "buffer", state)
        return read_tree(Path(folder) / "buffer")


@pytest.mark.parametrize("groups", [[], [[[1, 2], [3]], [[2]]]])
def test_a_saved_buffer_is_the_same(groups: list[list[list[int]]]) -> None:
    buffer, _ = filled(9, *groups)
    loaded = Buffer(9)
    loaded.load_state_dict(roundtrip(buffer.state_dict()))
    assert loaded.uids == buffer.uids
    taken, expected = (b.take(len(groups), 3).groups or [] for b in (loaded, buffer))
    for ours, theirs in zip(taken, expected, strict=True):
        assert ours.task.row == theirs.task.row
        for a, b in zip(ours.samples, theirs.samples, strict=True):
            for name in Sample.__dataclass_fields__:
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert type(getattr(a, name)) is type(getattr(b, name))


class Runs(RuleBasedStateMachine):
    """A run with a simulated sampler: weights change while groups are drawn, services fail."""

    PER_STEP = 2

    @initialize(eta=st.sampled_from([0, 1, 2, 4]), ordered=st.booleans())
    def begin(self, eta: int, ordered: bool) -> None:
        self.eta = eta
        self.buffer, self.order = Buffer(eta, ordered=ordered), bare_order()
        self.sampler, self.learner, self.next_version = 1, 1, 1
        self.drawing: dict[int, tuple[Task, list[int]]] = {}
        self.consumed: list[int] = []
        self.fill()

    def fill(self) -> None:
        while self.buffer.may_start(self.sampler, self.next_version, self.PER_STEP):
            task = self.order.next()
            self.buffer.start(task, self.sampler)
            self.drawing[task.uid] = (task, [self.sampler])

    def some(self, data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(self.drawing)), unique=True))

    @precondition(lambda self: self.drawing)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        for uid in self.some(data):
            task, versions = self.drawing.pop(uid)
            versions.append(self.sampler)
            self.buffer.put(make_group(task, versions, [versions[0]]))
        self.fill()

    @precondition(lambda self: self.drawing)
    @rule(data=st.data(), lost=st.booleans())
    def fail(self, data: st.DataObject, lost: bool) -> None:
        """A request breaks off: it is drawn anew, or its task goes back."""
        for uid in self.some(data)[:1]:
            task, _ = self.drawing.pop(uid)
            if lost:
                self.buffer.drop(task)
                self.order.give_back(task)
            else:
                self.buffer.start(task, self.sampler)
                self.drawing[uid] = (task, [self.sampler])
        self.fill()

    @rule()
    def step(self) -> None:
        if self.next_version != self.learner:
            return  # it trains
        taken = self.buffer.take(self.PER_STEP, self.learner)
        assert not taken.expired  # the rule of admission keeps all within the bound
        if taken.groups is None:
            return
        assert len(taken.groups) == self.PER_STEP
        for group in taken.groups:
            for sample in group.samples:
                assert all(0 <= self.learner - v <= self.eta for v in sample.versions_T)
            self.order.done(group.task)
            self.consumed.append(group.task.uid)
        self.next_version = self.learner + 1
        self.fill()

    @precondition(lambda self: self.next_version > self.learner)
    @rule()
    def publish(self) -> None:
        self.learner = self.sampler = self.next_version
        self.fill()

    @rule()
    def resume(self) -> None:
        """A new process goes on: what waited is there, what was being drawn comes again."""
        if self.next_version != self.learner:
            return
        order, buffer = self.order.state_dict(), roundtrip(self.buffer.state_dict())
        ordered = self.buffer._ordered
        self.buffer, self.order = Buffer(self.eta, ordered=ordered), bare_order()
        self.buffer.load_state_dict(buffer)
        self.order.load_state_dict(order, held=self.buffer.uids)
        self.drawing = {}
        self.fill()

    @invariant()
    def every_task_is_somewhere_once(self) -> None:
        if not hasattr(self, "order"):
            return
        state = self.order.state_dict()
        assert set(state["out"]) == self.buffer.uids | self.drawing.keys()
        everything = sorted([*self.consumed, *state["out"], *state["waiting"]])
        assert everything == list(range(state["next"]))

    @invariant()
    def it_never_stands_still(self) -> None:
        """Something is being drawn, or a step can be taken."""
        if hasattr(self, "order") and self.next_version == self.learner:
            assert self.drawing or len(self.buffer) >= self.PER_STEP


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
