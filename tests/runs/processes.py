"""The processes of a run, which can be killed: trainers, samplers and reward servers.

They come from one fork server that has loaded torch, so that each starts in a fraction of a
second. What runs in them is the commands `guerdon train …` and `guerdon serve …` themselves.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

START_SECONDS = 120.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.runs.loaded"])


def serve_reward(arguments: Sequence[str]) -> int:
    """`guerdon serve reward`."""
    from guerdon.serving.cli import app

    app(["reward", *arguments], prog_name="guerdon serve")
    return 0


def serve_sampler(arguments: Sequence[str], dies: str, seconds_per_token: float) -> int:
    """`guerdon serve sampler` with the engine of `model_engine`."""
    from tests.runs.model_engine import Deaths, ModelEngine

    from guerdon.sampler import loading
    from guerdon.sampler.cli import app
    from guerdon.sampler.tokenizer import CheckpointTokenizer

    def load(config: Any) -> Any:
        folder = Path(config.model)
        return ModelEngine(folder, Deaths(dies), seconds_per_token), CheckpointTokenizer(folder)

    loading.load_policy = load
    app(list(arguments), prog_name="guerdon serve sampler")
    return 0


def train(arguments: Sequence[str], dies: str = "") -> int:
    """`guerdon train`, killed at a point of `tests.runs.points`."""
    from tests.runs.points import set_up

    from guerdon.cli.main import main

    if dies:
        set_up(dies)
    return main(["train", *arguments])


def _child(log: str, function: Callable[..., int], arguments: Sequence[Any]) -> None:
    import torch

    with Path(log).open("ab") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    torch.set_num_threads(1)
    code = 1
    try:
        code = function(*arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Child:
    """A process that was started.

    Args:
        log: what it prints is added to this file.
        function: of this module.
        arguments: of the function.
    """

    def __init__(self, log: Path, function: Callable[..., int], *arguments: Any) -> None:
        self.log_file = log
        self._process = _context.Process(target=_child, args=(str(log), function, arguments))
        self._process.start()

    @property
    def killed(self) -> bool:
        """Whether it was ended by SIGKILL."""
        return self._process.exitcode == -signal.SIGKILL

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        # Not `join`: it reads the exit code, which only one thread may (the other is told 255).
        connection.wait([self._process.sentinel])

    def freeze(self) -> None:
        """SIGSTOP: it takes connections and calls (the system does), and answers none."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def end(self, seconds: float = 120.0) -> int:
        """Wait for its end; the exit code."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"it still runs:\n{self.log()}"
        return self._process.exitcode

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


class Service:
    """A server that is started again on its port whenever it was killed.

    Args:
        folder: for its log.
        name: of the log.
        launch: makes the process, given the ready file and what this one's end shall be.
        deaths: how the first processes end, by turns; the others live.
        wait: called before it is started again.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        launch: Callable[[Path, Path, str], Child],
        deaths: Sequence[str] = (),
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = folder / f"{name}.log"
        self._ready = folder / f"{name}.json"
        self._launch, self._deaths, self.wait = launch, list(deaths), wait
        self.kills = 0
        """How often it was killed."""
        self._leaving = threading.Event()
        self.child = self._start()
        self._watch = threading.Thread(target=self._keep)
        self._watch.start()

    def _start(self) -> Child:
        self._ready.unlink(missing_ok=True)
        child = self._launch(self._log, self._ready, self._deaths.pop(0) if self._deaths else "")
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.exists():
            assert child.running, child.log()
            assert time.monotonic() < deadline, child.log()
            time.sleep(0.01)
        return child

    def _keep(self) -> None:
        while not self._leaving.wait(0.005):
            if not self.child.running:
                assert self.child.killed, self.child.log()
                self.kills += 1
                self.wait()
                if not self._leaving.is_set():
                    self.child = self._start()

    @property
    def unused(self) -> list[str]:
        """Deaths that did not come."""
        return self._deaths

    @property
    def port(self) -> int:
        return int(json.loads(self._ready.read_text())["port"])

    def stop(self) -> None:
        """For good."""
        self._leaving.set()
        self._watch.join()
        self.child.kill()


@contextlib.contextmanager
def sampler_service(
    folder: Path, policy: Path, deaths: Sequence[str] = (), *, seconds_per_token: float = 0.0
) -> Iterator[Service]:
    """A sampler; see `model_engine.Deaths` for the ends it can take."""
    port = free_port()

    def launch(log: Path, ready: Path, dies: str) -> Child:
        flags = ["--model", str(policy), "--port", str(port), "--http-port", "-1"]
        flags += ["--ready-file", str(ready)]
        return Child(log, serve_sampler, flags, dies, seconds_per_token)

    yield from _serving(Service(folder, "sampler", launch, deaths))


@contextlib.contextmanager
def reward_service(folder: Path, **models: Path) -> Iterator[Service]:
    """A reward server in deterministic float32."""
    port = free_port()

    def launch(log: Path, ready: Path, _: str) -> Child:
        flags = [flag for name, path in models.items() for flag in ("--model", f"{name}={path}")]
        flags += ["--port", str(port), "--http-port", "-1", "--admin-port", "-1"]
        flags += ["--dtype", "float32", "--deterministic", "--ready-file", str(ready)]
        return Child(log, serve_reward, flags)

    yield from _serving(Service(folder, "reward", launch))


def _serving(service: Service) -> Iterator[Service]:
    try:
        yield service
    finally:
        service.stop()
