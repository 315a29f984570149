"""The client over HTTP beside the same client over gRPC, on one real reward server."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.in_process import until

from guerdon.client import (
    TLS,
    AsyncAdminClient,
    AsyncRewardClient,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FormattedText,
    GuerdonError,
    InvalidArgument,
    Item,
    Limits,
    NotFound,
    Overloaded,
    Retry,
    TokenIds,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from guerdon.client.types import Timing

from .conftest import Harness, start_server
from .test_tls import Authority

Clients = tuple[AsyncRewardClient, AsyncRewardClient]
CHAT = [{"role": "system", "content": "Sei kürz."}, {"role": "user", "content": "Was ist Regen?"}]
ITEMS = [
    Item("What is rain?", ["Water from clouds.", "", "Wässer ☔ \u2028 \"'\\"], id="a"),
    Item(CHAT, ["Wasser."]),
    Item(FormattedText("Q: rain? A:"), [" water", " mud"]),
    Item(TokenIds((5, 6, 7)), [TokenIds((8, 9)), TokenIds((1,))], id="ids"),
]


def both(served: Harness, **settings: Any) -> Clients:
    """A client over gRPC and one over HTTP."""
    url = f"http://127.0.0.1:{served.ports.http_port}"
    return (
        AsyncRewardClient(f"127.0.0.1:{served.ports.port}", **settings),
        AsyncRewardClient(url, **settings),
    )


def untimed(result: Any) -> Any:
    """A result without the times that it took, and without what a cache saved."""
    return dataclasses.replace(result, timing=Timing())


async def test_scores_and_all_that_comes_with_them_are_the_same() -> None:
    models = {"m": "first", "rated": "attributes", "normal": "normalised"}
    async with start_server(models=models) as served:
        over_grpc, over_http = both(served)
        for model, options in (
            ("m", {}),
            ("rated", {"activation": "sigmoid", "priority": "batch"}),
            ("normal", {"normalize": True, "truncation": "prompt_left"}),
        ):
            asked = [await c.score(model, ITEMS, **options) for c in (over_grpc, over_http)]
            assert untimed(asked[0]) == untimed(asked[1])
            assert asked[1].timing.total > 0
            top = [
                await c.rank(model, CHAT, ["a b", "c", "d e f"], top_n=2, **options)
                for c in (over_grpc, over_http)
            ]
            assert untimed(top[0]) == untimed(top[1])
            assert len(top[1].ranking) == 2


async def test_a_large_call_is_cut_over_http_too() -> None:
    items = [Item(f"question {i}", ["a", f"b {i}", "c d"]) for i in range(7)]
    async with start_server() as served:
        (over_grpc, _), (_, over_http) = both(served), both(served, limits=Limits(max_responses=2))
        whole, parts = await over_grpc.score("m", items), await over_http.score("m", items)
        assert whole.scores == parts.scores
        assert served.loader.behaviour.batches > 2


async def test_models_and_health_are_the_same() -> None:
    async with start_server(models={"m": "first", "rated": "attributes"}) as served:
        async with AsyncAdminClient(f"127.0.0.1:{served.ports.admin_port}") as admin:
            await admin.load_model("m", "second")
            await admin.set_alias("best", "m")
        over_grpc, over_http = both(served)
        listed = await over_grpc.list_models()
        assert await over_http.list_models() == listed
        assert len(listed) == 3
        other = next(model for model in listed if not model.current)
        for name in ("m", "best", "rated", other.pinned, f"best@{other.revision[:16]}"):
            assert await over_http.get_model(name) == await over_grpc.get_model(name)
        assert await over_http.health()
        with pytest.raises(Unimplemented, match="for gRPC alone"):
            await over_http.health("guerdon.v1.RewardService")


WRONG: list[tuple[type[GuerdonError], Callable[[AsyncRewardClient], Awaitable[Any]]]] = [
    (NotFound, lambda c: c.score("none", ITEMS)),
    (NotFound, lambda c: c.rank("none", "q", ["a"])),
    (NotFound, lambda c: c.get_model("none")),
    (NotFound, lambda c: c.get_model("m@0123456789abcdef")),
    (NotFound, lambda c: c.get_model("none@")),
    (InvalidArgument, lambda c: c.get_model("m@")),
    (InvalidArgument, lambda c: c.get_model("m@0")),
    (InvalidArgument, lambda c: c.score("m", [Item("q", ["a"]), Item("word " * 600, ["a"])])),
    (InvalidArgument, lambda c: c.score("m", [Item("q", ["a"], id="x" * 300)])),
    (InvalidArgument, lambda c: c.rank("m", TokenIds((5,)), ["text"])),
    (FailedPrecondition, lambda c: c.score("m", ITEMS, normalize=True)),
]


def said(error: GuerdonError) -> tuple[str, list[str]]:
    """Message and fields, of which JSON has no `text`: there a text stands for itself."""
    fields = [violation.field for violation in getattr(error, "field_violations", ())]
    return error.message.replace(".text:", ":"), [f.removesuffix(".text") for f in fields]


@pytest.mark.parametrize(("kind", "call"), WRONG)
async def test_errors_are_the_same(
    kind: type[GuerdonError], call: Callable[[AsyncRewardClient], Awaitable[Any]]
) -> None:
    async with start_server() as served:
        errors = []
        for client in both(served):
            with pytest.raises(kind) as caught:
                await call(client)
            errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert said(errors[0]) == said(errors[1])


async def test_a_failed_computation_is_internal_and_not_tried_again() -> None:
    async with start_server() as served:
        served.behaviour.fails = True
        _, over_http = both(served)
        with pytest.raises(GuerdonError, match="failed on the batch"):
            await over_http.score("m", ITEMS[:1])
        assert served.behaviour.batches == 1


async def test_tokens_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret-token\n")
    async with start_server(token_file=file) as served:
        for token in (None, "wrong"):
            with pytest.raises(Unauthenticated):
                await both(served, token=token)[1].score("m", ITEMS)
        over_grpc, over_http = both(served, token="s3cret-token")
        assert (await over_http.score("m", ITEMS)).scores == (
            await over_grpc.score("m", ITEMS)
        ).scores


async def test_a_deadline_and_leaving_end_the_work() -> None:
    async with start_server() as served:
        served.behaviour.gate.clear()
        _, over_http = both(served)
        with pytest.raises(DeadlineExceeded):
            await over_http.score("m", ITEMS[:1], timeout=0.2)
        waiting = asyncio.create_task(over_http.score("m", ITEMS[:1]))
        await until(lambda: served.behaviour.batches > 0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        under_way = asyncio.create_task(over_http.score("m", ITEMS[:1]))
        await until(lambda: bool(over_http._connection._http._under_way))  # type: ignore[attr-defined]
        await over_http.close()
        with pytest.raises(Cancelled, match="closed"):
            await under_way
        served.behaviour.gate.set()
        with pytest.raises(RuntimeError, match="closed"):
            await over_http.list_models()


async def test_what_is_for_grpc_alone_says_so() -> None:
    async with start_server() as served:
        _, over_http = both(served)
        with pytest.raises(Unimplemented, match="ScoreStream is for gRPC alone"):
            async for _ in over_http.score_stream("m", ITEMS):
                pass
        async with AsyncAdminClient(f"http://127.0.0.1:{served.ports.http_port}") as admin:
            with pytest.raises(Unimplemented, match="LoadModel is for gRPC alone"):
                await admin.load_model("m", "second")


async def test_a_reply_that_is_too_large_is_refused() -> None:
    async with start_server() as served:
        _, over_http = both(served, limits=Limits(max_reply_bytes=1000))
        with pytest.raises(Overloaded, match="max_reply_bytes") as caught:
            await over_http.score("m", [Item("q", ["a"] * 250, id="i")] * 2)
        assert caught.value.retry_after is None


async def test_a_request_over_the_limit_is_refused_and_not_tried_again() -> None:
    async with start_server(max_body_bytes=10_000) as served:
        _, over_http = both(served)
        for size in (20_000, 900_000):
            with pytest.raises(Overloaded) as caught:
                await over_http.score("m", [Item("x" * size, ["a"])], timeout=10)
            assert caught.value.retry_after is None


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
async def test_https_checks_the_certificate(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, key = ours.sign("localhost")
    async with start_server(tls_certificate=certificate, tls_key=key) as served:
        port = served.ports.http_port

        async def score(host: str, tls: TLS | None) -> int:
            url = f"https://{host}:{port}"
            async with AsyncRewardClient(url, tls=tls, retry=Retry(attempts=1)) as client:
                return len((await client.score("m", ITEMS)).scores)

        assert await score("localhost", TLS(ca=ours.certificate)) == len(ITEMS)
        named = TLS(ca=ours.certificate, server_name="localhost")
        assert await score("127.0.0.1", named) == len(ITEMS)
        for wrong in (None, TLS(ca=theirs.certificate)):
            with pytest.raises(Unavailable, match="certificate"):
                await score("localhost", wrong)
