"""What holds for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from deploy.demo.gpu import gpu_memory, too_small

# Tests run real servers and trainers beside each other on few cores: threads that wait must
# sleep, or they take the cores from those who work. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Nothing that is imported and collected is garbage: looking for it takes a sixth of the collection.
gc.disable()

# No example is late on a busy machine. (Under CI, Hypothesis has a profile of its own, and so too.)
if not os.environ.get("CI"):
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")

# Their engine (`tests/sampler/conftest.py`) starts in three processes that import vLLM.
_ONE_ENGINE = {
    "test_vllm_drawing.py",
    "test_vllm_parity.py",
    "test_vllm_refusals.py",
    "test_vllm_updates.py",
}

# Where there is a GPU, this process and those that it starts share its memory.
_MEMORY = gpu_memory()
_NEEDED_GIB = 8.0
if _MEMORY is not None:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "per_process_memory_fraction:0.2")


def pytest_configure() -> None:
    """Say at once that a GPU is too small, not test by test."""
    if reason := too_small(_MEMORY, _NEEDED_GIB):
        pytest.exit(reason, returncode=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: at their end quick ones keep all processes busy."""
    weights: dict[Path, int] = {}
    for item in items:
        allowed = item.get_closest_marker("timeout")
        seconds = allowed.args[0] if allowed else int(item.get_closest_marker("slow") is not None)
        weights[item.path] = max(weights.get(item.path, 0), seconds)
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files of one vLLM engine stay in one process too: in two there would be two engines."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "one engine" if Path(file).name in _ONE_ENGINE else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Take what the imports left out of garbage collections: a quarter of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """The same after each file, for what its tests were the first to import."""
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter's end collect it all, or libraries tell of leaks."""
    gc.unfreeze()
