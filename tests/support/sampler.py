"""The real `guerdon serve sampler`, in a process of its own, on free ports.

    with running_sampler(folder, dtype="float32") as sampler:
        channel = grpc.insecure_channel(sampler.address)

    with formula_sampler() as sampler:      # starts in a second: no vLLM in it

Flags are given as keywords: `max_in_flight=8` is `--max-in-flight 8`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.demo.gpu import gpu_memory
from tests.support.server import RunningServer, flag_list, running_process

START_SECONDS = 300.0
"""An engine compiles and warms up, on cores that other tests use too."""
END_SECONDS = 30.0
"""Within which the processes of one on vLLM are gone."""


def sampler_command(model: str | Path, *, module: str = "", **flags: object) -> list[str]:
    """The command line, on free ports unless the flags say otherwise."""
    command = (
        [sys.executable, "-m", module]
        if module
        else [sys.executable, "-m", "guerdon.serving", "sampler"]
    )
    if not module and gpu_memory() is not None:  # several tests' servers share it
        flags = {"gpu_memory_utilization": 0.15, **flags}
    return command + flag_list({"model": model, "port": 0, "http_port": 0, **flags})


@contextlib.contextmanager
def running_sampler(
    model: str | Path,
    *,
    environment: Mapping[str, str] | None = None,
    module: str = "",
    **flags: object,
) -> Iterator[RunningServer]:
    """Start it, wait until it is ready, kill it at the end if it still runs.

    Args:
        module: instead of `guerdon.serving sampler`.

    Raises:
        RuntimeError: it left before it was ready; the text is its log.
    """

    def command(ready: Path) -> list[str]:
        return sampler_command(model, module=module, ready_file=ready, **flags)

    with running_process(command, environment or {}, START_SECONDS) as sampler:
        yield sampler


@contextlib.contextmanager
def formula_sampler(
    *, seconds_per_token: float = 0.0, environment: Mapping[str, str] | None = None, **flags: object
) -> Iterator[RunningServer]:
    """The same command with the engine of `tests.support.formula_engine`."""
    variables = {"FORMULA_SECONDS_PER_TOKEN": str(seconds_per_token), **(environment or {})}
    with running_sampler(
        "formula", environment=variables, module="tests.support.formula_process", **flags
    ) as sampler:
        yield sampler


def descendants(root: int) -> dict[int, str]:
    """The processes below one, with their command names."""
    parents: dict[int, tuple[int, str]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (place / "stat").read_text().rpartition(")")
            parents[int(place.name)] = (int(rest.split()[1]), name.partition("(")[2])
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        above = waiting.pop()
        below = {pid: name for pid, (parent, name) in parents.items() if parent == above}
        found |= below
        waiting += below
    return found


def alive(pid: int) -> bool:
    """Whether it runs; a process that is dead and not yet waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_gone(pids: dict[int, str]) -> None:
    """Wait until none of some processes runs."""
    deadline = time.monotonic() + END_SECONDS
    while left := {pid: name for pid, name in pids.items() if alive(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def engine_processes(sampler: RunningServer) -> dict[int, str]:
    """The processes below one on vLLM, with their command names."""
    found = descendants(sampler.process.pid)
    assert any("VLLM" in name for name in found.values()), found
    return found
