"""Ports for servers that tests start, and start again."""

from __future__ import annotations

import itertools
import os
import socket

# Below the ports that Linux gives out by itself (32768 and above), so that no connection of
# another test takes one between this answer and the server's start. A thousand for each worker.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_LOWEST = 20_000 + 1_000 * (_WORKER % 12)
_ports = itertools.cycle(range(_LOWEST, _LOWEST + 1_000))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; the next calls give others."""
    for port in itertools.islice(_ports, 1_000):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of the ports from {_LOWEST} is free")
