"""A chat model behind OpenAI's API, by transformers' own server, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from .ports import free_port


@contextlib.contextmanager
def openai_endpoint(folder: Path, log: Path) -> Iterator[str]:
    """Serve a checkpoint, which requests name by its folder; the base URL.

    Its streams end without `[DONE]`, which not every client takes.

    Args:
        log: what the server prints.

    Raises:
        AssertionError: it left before it was ready; the text is its log.
    """
    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", folder]
    flags = ("--host", "127.0.0.1", "--port", str(port), "--device", "cpu")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *flags], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
