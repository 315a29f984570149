"""Batches that are computed between the layers of others: neither changes the other's scores."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.support import Reference, engine_scores, item, load, words
from tests.engine.test_exact import VARIANTS
from tests.engine.test_prefixes import alone

from guerdon.reward.engine.engine import PackedEngine, PaddedEngine
from guerdon.reward.engine.preemption import between_layers, preemptible
from guerdon.reward.engine.prefix_cache import BLOCK, PrefixCache
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.engine_process.compute_thread import ComputeThread
from guerdon.reward.kinds import load_model
from guerdon.reward.types import EncodedItem

TOLERANCE = 1e-4
Make = Callable[..., Path]


def preempted(
    engine: PackedEngine, outer: Sequence[EncodedItem], inner: Sequence[Callable[[], Any]]
) -> tuple[Any, list[Any]]:
    """The scores of a batch, and what was done before its first layers, one thing before each."""
    found: list[Any] = []

    def between_layers() -> None:
        if len(found) < len(inner):
            with preemptible(None):
                found.append(inner[len(found)]())

    with preemptible(between_layers):
        return engine_scores(engine, outer), found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "modernbert", "qwen3"])
def test_a_batch_that_stands_aside_has_the_same_bits(checkpoint: Make, architecture: str) -> None:
    engine = PackedEngine(load(checkpoint(architecture)))
    rng = np.random.default_rng(0)
    outer = [item(rng, 30, [20, 7, 12]), item(rng, 0, [50])]
    inner = [[item(rng, 10, [5, 40])], [item(rng, 0, [3])]]
    computing = [functools.partial(engine_scores, engine, one) for one in inner]
    wanted = [engine_scores(engine, outer), *(compute() for compute in computing)]
    scores, others = preempted(engine, outer, computing)
    for found, undisturbed in zip([scores, *others], wanted, strict=True):
        np.testing.assert_array_equal(found, undisturbed)


_texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=3)
"""Texts as paths: each takes one of three continuations of its beginning."""


@pytest.mark.parametrize("fails", [False, True])
@settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    rounds=st.lists(
        st.tuples(_texts, st.lists(_texts, min_size=2, max_size=2)), min_size=1, max_size=3
    ),
    blocks=st.integers(1, 12),
)
def test_no_batch_uses_what_another_has_not_computed_or_takes_what_it_uses(
    checkpoint: Make,
    fails: bool,
    rounds: list[tuple[list[list[int]], list[list[list[int]]]]],
    blocks: int,
) -> None:
    """Whatever they have in common, however few blocks there are, and also where one fails."""
    engine, reference = _engine_and_reference(checkpoint("llama", num_hidden_layers=3))
    engine.cache = cache = PrefixCache(blocks * BLOCK, 1)
    pieces = [words(np.random.default_rng(n), BLOCK + 3) for n in range(3)]

    def check(texts: list[list[int]], found: Any = None) -> None:
        batch = [alone(*(pieces[n] for n in path), pieces[0][:5]) for path in texts]
        found = engine_scores(engine, batch) if found is None else found
        np.testing.assert_allclose(found, reference.scores(batch), atol=TOLERANCE, rtol=0)

    def fail(texts: list[list[int]]) -> None:
        """A batch that fails before its second layer."""
        batch = [alone(*(pieces[n] for n in path), pieces[0][:5]) for path in texts]
        with pytest.raises(InterruptedError):
            preempted(engine, batch, [lambda: None, _interrupt])

    for outer, inner in rounds:
        if fails:
            fail(outer)
        batch = [alone(*(pieces[n] for n in path), pieces[0][:5]) for path in outer]
        between = [functools.partial(fail if fails else check, texts) for texts in inner]
        scores, done = preempted(engine, batch, between)
        assert len(done) == len(inner)
        check(outer, scores)
        for texts in inner:
            check(texts)
        check(outer)
    assert len(cache._known) + len(cache._free) == cache.blocks


@functools.cache
def _engine_and_reference(folder: Path) -> tuple[PackedEngine, Reference]:
    return PackedEngine(load(folder)), Reference(folder)


def _interrupt() -> None:
    raise InterruptedError


def test_what_is_urgent_goes_between_layers_one_after_the_other(checkpoint: Make) -> None:
    engine = PackedEngine(load(checkpoint("llama", num_hidden_layers=3)))
    rng, thread, order = np.random.default_rng(0), ComputeThread(), list[str]()
    batches = {name: [item(rng, 20, [9])] for name in ("long", "next", "urgent", "urgent too")}
    wanted = {name: engine_scores(engine, batch) for name, batch in batches.items()}
    began, all_wait = threading.Event(), threading.Event()

    def compute(name: str) -> Any:
        order.append(name)
        if name == "long":
            began.set()
            assert all_wait.wait(60)
        scores = engine_scores(engine, batches[name])
        order.append(f"{name} done")
        return scores

    with ThreadPoolExecutor(4) as callers:
        found = {"long": callers.submit(thread.run, lambda: compute("long"))}
        assert began.wait(60)
        found["next"] = callers.submit(thread.run, lambda: compute("next"))
        for waiting, name in enumerate(("urgent", "urgent too"), start=1):
            found[name] = callers.submit(thread.run_urgent, functools.partial(compute, name))
            while len(thread._urgent) < waiting:
                time.sleep(0.001)
        all_wait.set()
        for name, each in found.items():
            np.testing.assert_array_equal(each.result(60), wanted[name])
    *ahead, _, _ = order
    assert ahead == ["long", "urgent", "urgent done", "urgent too", "urgent too done", "long done"]


def test_what_is_urgent_fails_alone_and_an_idle_thread_computes_it_at_once() -> None:
    thread = ComputeThread()
    with pytest.raises(InterruptedError):
        thread.run_urgent(_interrupt)
    assert thread.run_urgent(lambda: 1) == 1
    assert thread.run(lambda: 2) == 2


def test_the_clock_of_a_batch_stands_still_while_another_is_computed() -> None:
    thread = ComputeThread()
    waiting = threading.Event()

    def long() -> tuple[float, float]:
        began, own = time.monotonic(), thread.clock()
        while not thread._urgent:
            waiting.set()
            time.sleep(0.001)
        between_layers()()
        return time.monotonic() - began, thread.clock() - own

    def urgent() -> float:
        own = thread.clock()
        time.sleep(0.2)
        return thread.clock() - own

    with ThreadPoolExecutor(1) as callers:
        found = callers.submit(thread.run, long)
        assert waiting.wait(60)
        between = thread.run_urgent(urgent)
        took, own = found.result(60)
    assert between >= 0.2
    assert own <= took - between + 0.01


def test_what_keeps_something_between_its_layers_or_queues_kernels_does_not_stand_aside(
    checkpoint: Make,
) -> None:
    folder = checkpoint("llama")
    architecture, longrope_settings = VARIANTS["phi3-longrope"]
    longrope = checkpoint(architecture, **longrope_settings)
    assert PackedEngine(load(folder)).preemptible
    assert not PackedEngine(load(longrope)).preemptible
    assert not PaddedEngine(load(folder)).preemptible
    assert not PackedEngine(load(folder).to("meta")).preemptible  # no CPU
    for mode, stands_aside in (("auto", True), ("padded", False)):
        model_settings = EngineSettings(mode=mode)
        assert (
            load_model(folder, name="m", settings=model_settings).info.preemptible is stands_aside
        )
