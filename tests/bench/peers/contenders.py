"""Who takes part: this server, its engine, its peers, and the bound."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.bench.peers import over_grpc
from tests.bench.peers.calls import Call, Turn
from tests.bench.peers.contender import Ask, Contender, Failed, Server, Worker
from tests.bench.peers.over_http import HTTPServer

PROGRAMS = "tests.bench.peers.programs"
ABSENT = {
    "text-embeddings-inference": "no Python package holds its server (it comes as a container or "
    "is built by cargo), and it refuses Llama-like classifiers such as this model"
}
"""Who can't take part, and why."""


class Guerdon(Server):
    """`guerdon serve reward` with its defaults but for the allocator, asked by its own client."""

    name = "guerdon"
    label = "this server, gRPC"

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """Nothing but the model, its numbers and the port."""
        command = [sys.executable, "-m", "guerdon.serving", "reward", "--port", str(self.port)]
        command += ["--model", f"{over_grpc.MODEL}={self.setup.folder}"]
        return [*command, "--dtype", self.setup.dtype, "--http-port", "-1"]

    def ready(self) -> bool:
        """Whether its health says so: it listens while it loads."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=1
                )
            except grpc.RpcError:
                return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def connect(self) -> AbstractAsyncContextManager[Ask]:
        """Its client."""
        return over_grpc.connected(self.address, self._count)

    def _count(self, tokens: int) -> None:
        self.computed_tokens = (self.computed_tokens or 0) + tokens

    def score_file(self, path: Path, in_flight: int) -> float:
        """`guerdon score`, which reads and writes files itself."""
        command = [sys.executable, "-m", "guerdon.cli.main", "score", "--model", over_grpc.MODEL]
        command += ["--server", self.address, "--in-flight", str(in_flight)]
        command += ["--restart", str(path), "-o", str(path.with_suffix(".scores.jsonl"))]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"guerdon score: {done.stderr.strip()}")
        return time.perf_counter() - begun


class GuerdonByCore(Guerdon):
    """`guerdon serve reward` with several engines, each of one thread on its share of the cores."""

    name = "by-core"
    label = "this server, an engine a core"

    def command(self) -> list[str]:
        """As many engines as the others have threads."""
        return [*super().command(), "--devices", str(self.setup.threads)]


class GuerdonDeterministic(Guerdon):
    """`guerdon serve reward` with one sequence in a forward pass, and nothing shared."""

    name = "deterministic"
    label = "this server, deterministic"

    def command(self) -> list[str]:
        """The switch for it."""
        return [*super().command(), "--deterministic"]


class Engine(Worker):
    """What is left of a call without the network, the queue and tokenising."""

    name = "engine"
    label = "its engine in process"
    module = f"{PROGRAMS}.engine"


class VLLM(HTTPServer):
    """vLLM's asynchronous engine: continuous batching, chunked prefill, prefix cache."""

    name = "vllm"
    label = "vLLM pooling"
    module = f"{PROGRAMS}.vllm_pooling"
    package = "vllm"
    install = "make setup-sampler"

    def environment(self) -> dict[str, str]:
        """The others' number of threads, and no network."""
        return {
            # By default it would leave a core to its front end, and bind the rest.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_PLUGINS": "",  # Guerdon's own is for the sampler
            "HF_HUB_OFFLINE": "1",
        }


class FastAPIScript(HTTPServer):
    """FastAPI around padded `transformers`, one call at a time."""

    name = "fastapi"
    label = "FastAPI + transformers"
    module = f"{PROGRAMS}.fastapi_script"


class LitServe(HTTPServer):
    """LitServe's dynamic batches, padded."""

    name = "litserve"
    label = "LitServe, dynamic batches"
    module = f"{PROGRAMS}.litserve_batching"
    package = "litserve"
    install = "pip install -e '.[bench]'"


class Bound(Worker):
    """Matrix products alone."""

    name = "bound"
    label = "bare matrix products"
    module = f"{PROGRAMS}.bound"
    scores = False


class Reference(Worker):
    """Plain `transformers`, one sequence at a time: what every score is compared with."""

    name = "reference"
    label = "plain transformers"
    module = f"{PROGRAMS}.reference"

    def once(self, calls: Sequence[Call]) -> Turn:
        """Start it for these calls alone.

        Raises:
            Failed: it could not answer.
        """
        try:
            self.start(calls[0])
            return self.turn(calls, 1)
        finally:
            self.stop()


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (
        Guerdon,
        GuerdonByCore,
        GuerdonDeterministic,
        Engine,
        VLLM,
        FastAPIScript,
        LitServe,
        Bound,
    )
}
"""All of them; the first is what the others are compared with."""
