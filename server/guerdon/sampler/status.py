"""What the sampler serves now, and how busy it is: for `GetPolicy`, `/v1/policy`, metrics."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from guerdon.sampler.types import PolicyEngine


@dataclass(frozen=True, kw_only=True)
class PolicyStatus:
    """The fields of `GetPolicyResponse`."""

    model: str
    instance: str
    weight_version: int
    weight_sha256: bytes
    dtype: str
    max_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    running: int
    waiting: int
    limit: int
    shared_path: bool
    nccl: bool


class StatusReader:
    """Reads the policy's status from its engine.

    Args:
        limit: most completions running and waiting.
    """

    def __init__(self, engine: PolicyEngine, *, limit: int, shared_path: bool, nccl: bool) -> None:
        self._engine = engine
        self._limit = limit
        self._shared_path = shared_path
        self._nccl = nccl
        self._instance = secrets.token_hex(16)

    def read(self) -> PolicyStatus:
        """The status now."""
        engine = self._engine
        running, waiting = engine.load()
        return PolicyStatus(
            model=engine.info.model,
            instance=self._instance,
            weight_version=engine.version,
            weight_sha256=engine.sha256,
            dtype=engine.info.dtype,
            max_tokens=engine.info.max_tokens,
            vocab_size=engine.info.vocab_size,
            eos_token_ids=engine.info.eos_token_ids,
            running=running,
            waiting=waiting,
            limit=self._limit,
            shared_path=self._shared_path,
            nccl=self._nccl,
        )
