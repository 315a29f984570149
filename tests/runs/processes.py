"""The processes of a run, which can be killed: trainers, samplers and reward servers.

What runs in them is the commands `guerdon train …` and `guerdon serve …` themselves.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.forked import Child, serve_reward
from tests.support.ports import free_port

START_SECONDS = 120.0


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
        return Child(log, serve_reward, *flags)

    yield from _serving(Service(folder, "reward", launch))


def _serving(service: Service) -> Iterator[Service]:
    try:
        yield service
    finally:
        service.stop()
