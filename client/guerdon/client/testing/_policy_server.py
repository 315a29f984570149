"""The fake policy sampler; see `guerdon.client.testing`. What it answers: `_policy_service.py`."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import status_pb2

from guerdon.client.policy_types import TensorSpec
from guerdon.client.testing._policy_service import FakePolicyService, FakeState, ReceivedUpdate
from guerdon.client.testing._server import FakeServer, refused
from guerdon.v1 import policy_pb2_grpc

Policy = Callable[[Sequence[int], int | None, int], tuple[Sequence[int], Sequence[float]]]
"""Takes the prompt's ids, the item's seed and the completion's number; returns token ids and
their log-probabilities."""


@dataclass(slots=True)
class _CommitFault:
    status: status_pb2.Status
    applied: bool


class FakePolicyServer(FakeServer):
    """A FAKE policy sampler: draws what you say, and fails when you say.

    Use it as a context manager, `with` or `async with`. Versions, spans, updates and refusals are
    those of `guerdon.v1.PolicyService`; no model is behind them, and canaries are not compared.

    Args:
        policy: draws a completion. By default: 1 to `max_tokens` random ids from 3 to 99, each
            with probability 1/97, and then the end token 2 where there is room.
        delay: seconds that each completion takes, drawn uniformly between the two.
        eos: the token that ends a completion.
        dtype: of the weights that it asks for.
        limit: most completions in flight.
        tensors: the policy's own; an update of others is refused. Anything goes without.
    """

    SERVICE = "guerdon.v1.PolicyService"
    MESSAGE_BYTES = 32 * 1024 * 1024

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        delay: tuple[float, float] = (0.0, 0.0),
        eos: int = 2,
        dtype: str = "float32",
        limit: int = 100_000,
        tensors: Sequence[TensorSpec] | None = None,
    ) -> None:
        super().__init__()
        self._policy = policy
        self._delay = delay
        self._chance = random.Random(0)  # noqa: S311 - a fake
        self.eos = eos
        self.dtype = dtype
        self.limit = limit
        self.tensors = None if tensors is None else tuple(tensors)
        self.calls: list[tuple[str, Any]] = []
        """Method and message of every call that came in; for updates, the `BeginUpdate`."""
        self.updates: list[ReceivedUpdate] = []
        """Weights that were taken."""
        self.drawn = 0
        """Completions that were sent."""
        self._state = FakeState()
        self._commit_faults: deque[_CommitFault] = deque()

    @property
    def version(self) -> int:
        """The version of the weights that serve."""
        return self._state.version

    def add_services(self, server: grpc.aio.Server) -> None:
        """Put the sampler into a server: as a fresh process, with version 0."""
        self._state = FakeState()
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(
            FakePolicyService(self, self._state), server
        )

    def fail_commits(
        self,
        code: grpc.StatusCode,
        message: str = "injected by the test",
        *,
        times: int = 1,
        applied: bool = False,
    ) -> None:
        """End the next updates with an error when all has come.

        Args:
            code: FAILED_PRECONDITION is what a canary that parts gets.
            message: of the error.
            times: how many updates.
            applied: the weights are taken all the same: it is the answer that is lost.
        """
        status = refused(code, message).status
        self._commit_faults.extend(_CommitFault(status, applied) for _ in range(times))

    # Used by the service

    def receive(self, method: str, request: Any) -> None:
        self.calls.append((method, request))
        self.raise_fault(method)

    def take_commit_fault(self) -> _CommitFault | None:
        return self._commit_faults.popleft() if self._commit_faults else None

    async def wait(self) -> None:
        """Take as long as a completion does; a test may put something longer in its place."""
        low, high = self._delay
        await self._state.take_time(self._chance.uniform(low, high) if high else 0.0)

    def draw(
        self, prompt: Sequence[int], seed: int | None, sample: int, most: int
    ) -> tuple[Sequence[int], Sequence[float]]:
        if self._policy is not None:
            ids, logprobs = self._policy(prompt, seed, sample)
            return ids[:most], logprobs[:most]
        made = None if seed is None else f"{seed}/{sample}/{list(prompt)}"
        chance = self._chance if made is None else random.Random(made)  # noqa: S311
        ids = [chance.randrange(3, 100) for _ in range(chance.randint(1, most))]
        if len(ids) < most:
            ids.append(self.eos)
        return ids, [-4.57471] * len(ids)
