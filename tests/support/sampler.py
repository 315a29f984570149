"""The real `guerdon serve sampler`, in a process of its own, on free ports.

    with running_sampler(folder, dtype="float32") as sampler:
        channel = grpc.insecure_channel(sampler.address)

    with formula_sampler() as sampler:      # starts in a second: no vLLM in it

Flags are given as keywords: `max_in_flight=8` is `--max-in-flight 8`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.demo.gpu import gpu_memory
from tests.support.server import RunningServer, running_process

START_SECONDS = 300.0
"""An engine compiles and warms up, on cores that other tests use too."""


def sampler_command(model: str | Path, *, module: str = "", **flags: object) -> list[str]:
    """The command line, on free ports unless the flags say otherwise."""
    command = (
        [sys.executable, "-m", module]
        if module
        else [sys.executable, "-m", "guerdon.serving", "sampler"]
    )
    if not module and gpu_memory() is not None:  # several tests' servers share it
        flags = {"gpu_memory_utilization": 0.15, **flags}
    for name, value in {"model": model, "port": 0, "http_port": 0, **flags}.items():
        flag = f"--{name.replace('_', '-')}"
        command += [flag] if value is True else [flag, str(value)]
    return command


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
