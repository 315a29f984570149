"""The ports that a server got, told to scripts and to people."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The ports that a server really listens on."""

    host: str
    port: int
    http_port: int | None
    metrics_port: int | None = None

    def places(self) -> list[str]:
        """Each port, for people."""
        places = [f"gRPC on {self.host}:{self.port}"]
        if self.http_port is not None:
            places.append(f"HTTP on {self.host}:{self.http_port}")
        if self.metrics_port is not None:
            places.append(f"metrics on {self.host}:{self.metrics_port}")
        return places

    def sentence(self, what: str) -> str:
        """One line for people: what is served, and where."""
        return f"ready: {what}; {', '.join(self.places())}"

    def to_json(self) -> str:
        """JSON for scripts: hosts, ports, the process's number."""
        return json.dumps({**dataclasses.asdict(self), "pid": os.getpid()}) + "\n"
