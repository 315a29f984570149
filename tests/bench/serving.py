"""What the network, the scheduler and the queue cost: over gRPC against in process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import grpc
import torch
from tests.bench.common import (
    BenchSettings,
    encode,
    load,
    median,
    real_items,
    seconds,
    spread,
    table,
)
from tests.support.load import HealthProbe, closed_loop, metrics, offer, resident_bytes, total
from tests.support.server import RunningServer, running_server

from guerdon.client import Item, RewardClient
from guerdon.data import Conversation
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.types import EncodedItem, RewardModel, ScoreItem, Truncation
from guerdon.v1 import reward_pb2, reward_pb2_grpc

IN_FLIGHT = 64
REST_SECONDS = 0.01  # lets the other side's idle threads stop spinning
LONG_REST_SECONDS = 0.05

T = TypeVar("T")


def serve(settings: BenchSettings, **flags: object) -> AbstractContextManager[RunningServer]:
    """The real server with as many threads as this process has, without a prefix cache."""
    return running_server(
        {"bench": settings.folder},
        forked=False,
        environment={"OMP_NUM_THREADS": str(torch.get_num_threads())},
        dtype=settings.dtype,
        prefix_cache_mib=0,
        **flags,
    )


def as_client_item(item: ScoreItem) -> Item:
    """The same question, as the client asks it."""
    assert isinstance(item.prompt, Conversation)
    return Item(item.prompt.messages, [r for r in item.responses if isinstance(r, str)])


def as_request(item: ScoreItem) -> reward_pb2.ScoreRequest:
    """The same question, as it crosses the wire."""
    request = reward_pb2.ScoreRequest(model="bench")
    asked = request.items.add()
    for message in as_client_item(item).prompt:
        assert isinstance(message, Mapping)
        asked.prompt.conversation.messages.add(role=message["role"], content=message["content"])
    for response in item.responses:
        asked.responses.add(text=str(response))
    return request


def in_process(model: RewardModel, items: Sequence[EncodedItem]) -> tuple[float, list[float]]:
    """Seconds and scores of packed batches of as many texts as the clients have in flight."""
    scores: list[float] = []
    begun = time.perf_counter()
    for start in range(0, len(items), IN_FLIGHT):
        batch = model.score(items[start : start + IN_FLIGHT])
        scores += [score.score for item in batch.items for score in item]
    return time.perf_counter() - begun, scores


def over_grpc(address: str, items: Sequence[Item]) -> tuple[float, list[float]]:
    """Seconds and scores of single-sample calls, 64 in flight."""
    taken, scores = asyncio.run(closed_loop(address, items, model="bench", in_flight=IN_FLIGHT))
    return taken, [score for response in scores for score in response]


def throughput(settings: BenchSettings) -> None:
    """64 single-sample calls in flight, against the engine's own packed throughput."""
    model = load(settings)
    items = real_items(settings.texts)
    encoded = encode(model, items)
    asked = [as_client_item(item) for item in items]
    tokens = sum(item.tokens for item in encoded)
    ratios, engine_rates, grpc_rates = [], [], []
    difference = 0.0
    with serve(settings) as server:
        in_process(model, encoded[:IN_FLIGHT])
        over_grpc(server.address, asked[:IN_FLIGHT])  # both warm
        for _ in range(settings.rounds):
            alone, expected = in_process(model, encoded)
            time.sleep(REST_SECONDS)
            served, found = over_grpc(server.address, asked)
            time.sleep(REST_SECONDS)
            ratios.append(alone / served)
            engine_rates.append(tokens / alone)
            grpc_rates.append(tokens / served)
            difference = max(
                difference, *(abs(a - b) for a, b in zip(expected, found, strict=True))
            )
    model.close()
    table(
        f"{len(items)} single-sample calls, {IN_FLIGHT} in flight, {tokens} tokens, "
        f"{settings.dtype}, {settings.rounds} rounds",
        [
            ("engine in process, tokens/s", spread(engine_rates, 0)),
            ("over gRPC, tokens/s", spread(grpc_rates, 0)),
            ("gRPC / in process", spread(ratios)),
            ("largest difference of a score", f"{difference:.1e}"),
        ],
        settings.console,
    )


def latency(settings: BenchSettings) -> None:
    """One call on an idle server, against the bare forward pass of the same text."""
    model = load(settings)
    items = real_items(min(settings.texts, 100))
    encoded = encode(model, items)
    asked = [as_client_item(item) for item in items]
    requests = [as_request(item) for item in items]
    bare = [1000 * seconds(lambda each=each: model.score([each])) for each in encoded]  # type: ignore[misc]
    model.close()
    with (
        serve(settings) as server,
        grpc.insecure_channel(server.address) as channel,
        RewardClient(server.address) as client,
    ):
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        by_stub = [timed(stub.Score, each) for each in requests]
        by_client = [timed(lambda each: client.score("bench", [each]), each) for each in asked]
        rested = [timed(stub.Score, each, rest=LONG_REST_SECONDS) for each in requests]
    warm = slice(3, None)  # the first calls warm both sides up
    whole = median([call for call, _ in by_stub[warm]])
    table(
        f"{len(bare[warm])} single calls on an idle server, one at a time, {settings.dtype}, "
        "milliseconds",
        [
            ("bare forward pass in this process", spread(bare[warm])),
            ("whole call by a plain gRPC stub", spread([call for call, _ in by_stub[warm]])),
            ("… whole call / bare forward pass", f"{whole / median(bare[warm]):.3f}"),
            ("… adds to the server's forward pass", added(by_stub[warm])),
            ("… the same, after 50 ms of rest", added(rested[warm])),
            ("RewardClient adds to it", added(by_client[warm])),
        ],
        settings.console,
    )


def timed(call: Callable[[T], Any], argument: T, *, rest: float = 0.0) -> tuple[float, float]:
    """Milliseconds of a whole call, and of the forward pass in it as the server took it."""
    time.sleep(rest)
    begun = time.perf_counter()
    compute = call(argument).timing.compute
    whole = time.perf_counter() - begun
    own = compute if isinstance(compute, float) else compute.ToTimedelta().total_seconds()
    return 1000 * whole, 1000 * own


def added(calls: Sequence[tuple[float, float]]) -> str:
    """What calls take beyond the forward pass."""
    return spread([whole - own for whole, own in calls])


def overload(settings: BenchSettings) -> None:
    """Twice the load that the server can carry, with deadlines of ten service times."""
    encoder = Encoder(inspect_checkpoint(settings.folder))
    asked = real_items(settings.texts)
    tokens = sum(encoder.encode(item, Truncation.REJECT).tokens for item in asked)
    items = [as_client_item(item) for item in asked]
    with serve(settings, max_queue_tokens=4 * tokens // len(items) * IN_FLIGHT) as server:
        over_grpc(server.address, items[:IN_FLIGHT])
        taken, _ = over_grpc(server.address, items)
        capacity = len(items) / taken
        deadline = max(0.5, IN_FLIGHT / capacity)
        before, memory = metrics(server.url), resident_bytes(server.process.pid)
        with HealthProbe(server.address) as probe:
            outcome = asyncio.run(
                offer(
                    server.address,
                    items,
                    model="bench",
                    rate=2 * capacity,
                    seconds=20,
                    deadline=deadline,
                )
            )
        after, grown = metrics(server.url), resident_bytes(server.process.pid) - memory
    computed = total(after, "guerdon_batch_sequences_sum") - total(
        before, "guerdon_batch_sequences_sum"
    )
    health = sorted(probe.milliseconds)
    answered = outcome.codes["OK"]
    table(
        f"twice the load for {outcome.seconds:.0f} s: capacity {capacity:.1f} calls/s, offered "
        f"{outcome.offered / outcome.seconds:.1f}, deadline {deadline:.2f} s, {settings.dtype}",
        [
            ("calls", ", ".join(f"{n} {code}" for code, n in outcome.codes.most_common())),
            ("served in time / capacity", f"{answered / outcome.seconds / capacity:.2f}"),
            ("computed in vain", f"{computed - answered:.0f} of {computed:.0f}"),
            ("retry time, seconds", spread(outcome.retry_after or [0.0])),
            (
                "health, milliseconds: median, 99 %, largest",
                f"{median(health):.1f}, {health[int(0.99 * len(health))]:.1f}, {health[-1]:.1f}",
            ),
            ("memory grew by", f"{grown / 2**20:.0f} MiB"),
        ],
        settings.console,
    )
