"""What the sampler serves now, and how busy it is: for `GetPolicy` and `/v1/policy`."""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from guerdon.sampler.types import PolicyEngine
from guerdon.v1.policy_pb2 import GetPolicyResponse


class StatusReader:
    """Reads the policy's status from its engine.

    Args:
        limit: most completions running and waiting.
    """

    def __init__(self, engine: PolicyEngine, *, limit: int, shared_path: bool, nccl: bool) -> None:
        self._engine = engine
        self._fixed: dict[str, Any] = {"limit": limit, "shared_path": shared_path, "nccl": nccl}
        self._instance = secrets.token_hex(16)

    def read(self) -> GetPolicyResponse:
        """The status now."""
        engine = self._engine
        running, waiting = engine.load()
        return GetPolicyResponse(
            instance=self._instance,
            weight_version=engine.version,
            weight_sha256=engine.sha256,
            running=running,
            waiting=waiting,
            **dataclasses.asdict(engine.info),
            **self._fixed,
        )
