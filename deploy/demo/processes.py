"""The `guerdon` command as processes of their own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo.console import DemoFailed, clip, console, relative, shorten
from deploy.demo.gpu import environment_of, gpu_memory, sampler_flags, too_small
from rich.text import Text

GUERDON = Path(sys.executable).with_name("guerdon")

START_SECONDS = 300.0
"""vLLM takes its time the first time."""
STOP_SECONDS = 60.0


def leave_on_sigterm() -> None:
    """From now on SIGTERM ends this process like any exit: what it started is stopped first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def check_gpu() -> None:
    """See to it that the GPU, if there is one, has room for all programs.

    Raises:
        DemoFailed: it has not.
    """
    if reason := too_small(gpu_memory()):
        raise DemoFailed(reason)


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as a command line has them."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def shown(command: Sequence[str]) -> str:
    """A command as a user in the repository would type it."""
    return f"$ {' '.join([relative(GUERDON), *map(shorten, command)])}"


def run(command: Sequence[str], failure: str) -> None:
    """A command in the foreground.

    Raises:
        DemoFailed: it left with another exit code than 0.
    """
    console.print(shown(command), highlight=False, markup=False, soft_wrap=True)
    environment = environment_of(command, gpu_memory())
    code = subprocess.run([str(GUERDON), *command], env=environment, check=False).returncode
    if code == -signal.SIGKILL:
        raise DemoFailed(
            f"`guerdon {' '.join(command[:2])}` was killed: the memory may be too small"
        )
    if code != 0:
        raise DemoFailed(failure)


def run_logged(command: Sequence[str], log: Path) -> None:
    """A command whose words go to a file; a terminal shows the last of them meanwhile.

    Args:
        command: what follows `guerdon`.
        log: where it writes; what is there stays.

    Raises:
        DemoFailed: it left with another exit code than 0.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    line = shown(command)
    console.print(f"{line} > {relative(log)}", highlight=False, markup=False, soft_wrap=True)
    with log.open("a") as handle, console.status("") as status:
        handle.write(f"{line}\n")
        handle.flush()
        process = subprocess.Popen(
            [str(GUERDON), *command],
            stdout=handle,
            stderr=handle,
            env=environment_of(command, gpu_memory()),
        )
        try:
            while process.poll() is None:
                status.update(Text(clip(last_line(log), 100)))
                time.sleep(0.2)
        except SystemExit:  # SIGTERM, which the command did not get
            process.terminate()
            raise
        finally:
            if process.poll() is None:  # an interrupt: the command got it too
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=STOP_SECONDS)
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise DemoFailed(f"{last_line(log)} (see {relative(log)})")


def last_line(log: Path) -> str:
    """The last words of a log."""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 4000))
        lines = handle.read().decode(errors="replace").replace("\r", "\n").strip().split("\n")
    return lines[-1].strip()


@dataclass(frozen=True)
class Served:
    """Where a server is reached."""

    grpc: str
    """HOST:PORT."""
    http: str
    """URL."""


@contextlib.contextmanager
def serving(command: Sequence[str], log: Path) -> Iterator[Served]:
    """A server in a process of its own. Stopped by SIGTERM.

    Args:
        command: what follows `guerdon serve`.
        log: where it writes.

    Raises:
        DemoFailed: it did not start, or did not leave well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ready_file = log.with_suffix(".json")
    ready_file.unlink(missing_ok=True)
    memory = gpu_memory()
    words = ["serve", *command, *flags({"port": 0, "http-port": 0, "ready-file": ready_file})]
    if command[0] == "sampler":
        words += sampler_flags(memory)
    console.print(shown(words), highlight=False, markup=False, soft_wrap=True)
    with log.open("w") as handle:
        process = subprocess.Popen(
            [str(GUERDON), *words],
            stdout=handle,
            stderr=subprocess.STDOUT,
            env=environment_of(words, memory),
        )
        try:
            ports = wait_until_ready(process, ready_file, log)
            served = Served(f"127.0.0.1:{ports['port']}", f"http://127.0.0.1:{ports['http_port']}")
            console.print(
                f"gRPC on {served.grpc}, HTTP and metrics on {served.http} (log: {relative(log)})",
                highlight=False,
            )
            yield served
            stop(process, command[0], log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], file: Path, log: Path) -> dict[str, Any]:
    """The ports, once the server has written them.

    Raises:
        DemoFailed: the process ended, or time did.
    """
    deadline = time.monotonic() + START_SECONDS
    with console.status("loading the model and checking it …"):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise DemoFailed(f"the server did not start: {' '.join(tail)} (see {log})")
            if file.exists():
                ports: dict[str, Any] = json.loads(file.read_text())
                return ports
            time.sleep(0.05)
    raise DemoFailed(f"the server was not ready in {START_SECONDS:.0f} s; see {log}")


def stop(process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    """Ask a server to leave: it finishes what it accepted.

    Raises:
        DemoFailed: it does not, or says that something went wrong.
    """
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"the {name} server did not leave in {STOP_SECONDS:.0f} s") from None
    console.print(f"The {name} server left on SIGTERM with exit code {code}.", highlight=False)
    if code != 0:
        raise DemoFailed(f"the {name} server left with exit code {code}; see {log}")
