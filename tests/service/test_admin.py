"""Models loaded, named, swapped and unloaded while the server runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.in_process import until

from guerdon.reward.models.allowed_sources import AllowedSources
from guerdon.serving.errors import PermissionDenied
from guerdon.v1 import admin_pb2, admin_pb2_grpc, reward_pb2

from .conftest import Harness, start_server
from .fake import expected_score, revision_of, words
from .messages import item, score_request

FIRST, SECOND = revision_of("first"), revision_of("second")


def load(name: str, path: str, **more: Any) -> admin_pb2.LoadModelRequest:
    return admin_pb2.LoadModelRequest(name=name, path=path, **more)


def promote(revision: str, **more: Any) -> admin_pb2.PromoteModelRequest:
    return admin_pb2.PromoteModelRequest(name="m", revision=revision, **more)


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_the_first_revision_is_current_and_later_ones_wait(served: Harness) -> None:
    loaded = (await served.admin.LoadModel(load("m", "second"))).model
    assert (loaded.revision, loaded.current) == (SECOND, False)
    assert (await served.rewards.Score(score_request())).info.revision == FIRST
    pinned = await served.rewards.Score(score_request(model=f"m@{SECOND[:8]}"))
    assert pinned.info.revision == SECOND
    reply = await served.admin.PromoteModel(promote(SECOND[:12]))
    assert (reply.model.revision, reply.model.current) == (SECOND, True)
    assert reply.previous_revision == FIRST
    assert (await served.rewards.Score(score_request())).info.revision == SECOND
    other = (await served.admin.LoadModel(load("new", "third"))).model
    assert other.current


async def test_loading_with_promote_and_loading_twice(served: Harness) -> None:
    assert (await served.admin.LoadModel(load("m", "second", promote=True))).model.current
    again = (await served.admin.LoadModel(load("m", "second"))).model
    assert again.revision == SECOND
    models = (await served.rewards.ListModels(reward_pb2.ListModelsRequest())).models
    assert [(m.revision, m.current) for m in models] == [(FIRST, False), (SECOND, True)]


@pytest.mark.parametrize(
    ("path", "code", "outcome"),
    [
        ("missing", grpc.StatusCode.NOT_FOUND, "refused"),
        ("refused", grpc.StatusCode.FAILED_PRECONDITION, "refused"),
        ("broken", grpc.StatusCode.INTERNAL, "failed"),
    ],
)
async def test_a_load_that_fails_changes_nothing(
    served: Harness, path: str, code: grpc.StatusCode, outcome: str
) -> None:
    assert await code_of(served.admin.LoadModel(load("m", path, promote=True))) is code
    assert (await served.rewards.Score(score_request())).info.revision == FIRST
    line = f'guerdon_model_loads_total{{model="m",outcome="{outcome}"}}'
    assert await served.metric(line) == 1.0


async def test_other_models_serve_while_one_loads(served: Harness) -> None:
    served.behaviour.may_load.clear()
    loading = asyncio.ensure_future(served.admin.LoadModel(load("slow", "second")))
    await until(lambda: "second" in served.behaviour.loads)
    for _ in range(10):
        await served.still_serves()
    assert not loading.done()
    served.behaviour.may_load.set()
    assert (await loading).model.current


async def test_aliases(served: Harness) -> None:
    alias = admin_pb2.SetAliasRequest(alias="best", name="m")
    await served.admin.SetAlias(alias)
    assert (await served.rewards.Score(score_request(model="best"))).info.model == "m"
    missing = admin_pb2.SetAliasRequest(alias="x", name="nobody")
    assert await code_of(served.admin.SetAlias(missing)) is grpc.StatusCode.NOT_FOUND
    taken = served.admin.LoadModel(load("best", "second"))
    assert await code_of(taken) is grpc.StatusCode.FAILED_PRECONDITION
    await served.admin.DeleteAlias(admin_pb2.DeleteAliasRequest(alias="best"))
    gone = served.rewards.Score(score_request(model="best"))
    assert await code_of(gone) is grpc.StatusCode.NOT_FOUND
    again = served.admin.DeleteAlias(admin_pb2.DeleteAliasRequest(alias="best"))
    assert await code_of(again) is grpc.StatusCode.NOT_FOUND


async def test_unloading_waits_for_accepted_work(served: Harness) -> None:
    served.behaviour.gate.clear()
    scoring = asyncio.ensure_future(served.rewards.Score(score_request()))
    await until(lambda: served.behaviour.batches > 0)
    unloading = asyncio.ensure_future(
        served.admin.UnloadModel(admin_pb2.UnloadModelRequest(name="m"))
    )
    await until(lambda: served.server.registry.canonical("m") is None)
    assert not unloading.done()
    assert served.behaviour.closed == []
    late = served.rewards.Score(score_request())
    assert await code_of(late) is grpc.StatusCode.NOT_FOUND
    served.behaviour.gate.set()
    assert (await scoring).info.revision == FIRST
    assert list((await unloading).revisions) == [FIRST]
    assert served.behaviour.closed == [FIRST]


async def test_unloading_waits_for_work_whose_caller_has_left(served: Harness) -> None:
    served.behaviour.gate.clear()
    scoring = served.rewards.Score(score_request())
    await until(lambda: served.behaviour.batches > 0)
    scoring.cancel()
    unloading = asyncio.ensure_future(
        served.admin.UnloadModel(admin_pb2.UnloadModelRequest(name="m"))
    )
    await until(lambda: served.server.registry.canonical("m") is None)
    assert served.behaviour.closed == []  # the engine still computes with it
    served.behaviour.gate.set()
    await unloading
    assert served.behaviour.closed == [FIRST]


async def test_the_current_revision_is_unloaded_only_when_it_is_the_last(served: Harness) -> None:
    await served.admin.LoadModel(load("m", "second"))
    current = admin_pb2.UnloadModelRequest(name="m", revision=FIRST)
    assert await code_of(served.admin.UnloadModel(current)) is grpc.StatusCode.FAILED_PRECONDITION
    other = admin_pb2.UnloadModelRequest(name="m", revision=SECOND[:10])
    assert list((await served.admin.UnloadModel(other)).revisions) == [SECOND]
    assert list((await served.admin.UnloadModel(current)).revisions) == [FIRST]
    assert (await served.rewards.ListModels(reward_pb2.ListModelsRequest())).models == []
    assert await code_of(served.admin.UnloadModel(current)) is grpc.StatusCode.NOT_FOUND


async def test_promoting_under_load_drops_nothing_and_mixes_nothing(served: Harness) -> None:
    served.behaviour.seconds = 0.002
    seen: Counter[str] = Counter()
    stop = asyncio.Event()

    async def caller(number: int) -> None:
        i = 0
        while not stop.is_set():
            i += 1
            asked = [item(f"q {number} {i} {k}", "a", "b c") for k in range(3)]
            reply = await served.rewards.Score(score_request(*asked), timeout=30)
            revision = reply.info.revision
            for k, scored in enumerate(reply.items):
                for answer, score in zip(("a", "b c"), scored.scores, strict=True):
                    tokens = words(f"q {number} {i} {k}") + words(answer)
                    assert score.score == expected_score(revision, tokens)
            seen[revision] += 1

    callers = [asyncio.ensure_future(caller(n)) for n in range(16)]
    previous = FIRST
    for turn in range(6):
        path = f"turn-{turn}"
        await until(lambda: seen[previous] > 0)  # noqa: B023
        await served.admin.LoadModel(load("m", path))
        reply = await served.admin.PromoteModel(promote(revision_of(path), unload_previous=True))
        assert reply.previous_revision == previous
        previous = revision_of(path)
        after = await served.rewards.Score(score_request())
        assert after.info.revision == previous
    await until(lambda: seen[previous] > 0)
    stop.set()
    await asyncio.gather(*callers)  # an error of any call fails the test
    assert len(seen) == 7
    assert len(served.behaviour.closed) == 6
    models = (await served.rewards.ListModels(reward_pb2.ListModelsRequest())).models
    assert [m.revision for m in models] == [previous]


async def test_without_port_or_token_there_is_no_administration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GUERDON_ADMIN_TOKEN", raising=False)
    async with start_server(admin_port=-1) as served:
        stub: Any = admin_pb2_grpc.ModelAdminServiceStub(served.channel)
        call = stub.LoadModel(load("x", "second"))
        assert await code_of(call) is grpc.StatusCode.UNIMPLEMENTED


async def test_with_a_token_it_is_on_the_main_port_and_asks_for_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    async with start_server(admin_port=-1, admin_token_file=token) as served:
        stub: Any = admin_pb2_grpc.ModelAdminServiceStub(served.channel)
        for wrong in (None, "Bearer wrong", "Bearer ", "Basic s3cret", "s3cret"):
            metadata = [("authorization", wrong)] if wrong else []
            call = stub.LoadModel(load("x", "second"), metadata=metadata)
            assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", "Bearer s3cret")]
        assert (await stub.LoadModel(load("x", "second"), metadata=right)).model.name == "x"
        await served.still_serves()  # scoring has no token


async def test_scoring_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUERDON_TOKEN", "s3cret")
    async with start_server() as served:
        call = served.rewards.Score(score_request())
        assert await code_of(call) is grpc.StatusCode.UNAUTHENTICATED
        stream = served.rewards.ScoreStream(iter([]))
        assert await code_of(stream.read()) is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", "bearer s3cret")]
        assert (await served.rewards.Score(score_request(), metadata=right)).items
        body = {"model": "m", "items": [{"prompt": "a", "responses": ["b"]}]}
        refused = await served.http.post("/v1/score", json=body)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        allowed = await served.http.post(
            "/v1/score", json=body, headers={"Authorization": "Bearer s3cret"}
        )
        assert allowed.status_code == 200
        assert (await served.http.get("/healthz")).status_code == 200


def unload(name: str) -> admin_pb2.UnloadModelRequest:
    return admin_pb2.UnloadModelRequest(name=name)


async def until_idle(served: Harness) -> None:
    await until(lambda: not served.server.registry.loading)


async def test_a_slow_load_holds_up_no_other(served: Harness) -> None:
    served.behaviour.may_load.clear()
    slow = asyncio.ensure_future(served.admin.LoadModel(load("slow", "second")))
    await until(lambda: "second" in served.behaviour.loads)
    assert (await served.admin.LoadModel(load("other", "quick"), timeout=30)).model.current
    slow.cancel()
    await until_idle(served)


async def test_a_caller_who_leaves_ends_the_load(served: Harness) -> None:
    served.behaviour.may_load.clear()
    late = served.admin.LoadModel(load("slow", "second"), timeout=0.2)
    assert await code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_idle(served)
    line = 'guerdon_model_loads_total{model="slow",outcome="cancelled"}'
    await served.until_metric(line, lambda value: value == 1.0)


async def test_unloading_a_name_ends_its_loads(served: Harness) -> None:
    served.behaviour.may_load.clear()
    loading = asyncio.ensure_future(code_of(served.admin.LoadModel(load("slow", "second"))))
    beside = asyncio.ensure_future(code_of(served.admin.LoadModel(load("m", "third"))))
    await until(lambda: {"second", "third"} <= set(served.behaviour.loads))
    assert not (await served.admin.UnloadModel(unload("slow"))).revisions
    assert await loading is grpc.StatusCode.ABORTED
    assert not beside.done()
    assert list((await served.admin.UnloadModel(unload("m"))).revisions) == [FIRST]
    assert await beside is grpc.StatusCode.ABORTED
    await until_idle(served)
    assert await code_of(served.admin.UnloadModel(unload("slow"))) is grpc.StatusCode.NOT_FOUND


async def test_loads_under_way_are_bounded(served: Harness) -> None:
    served.behaviour.may_load.clear()
    loads = [
        asyncio.ensure_future(code_of(served.admin.LoadModel(load("slow", f"{i}"))))
        for i in range(4)
    ]
    await until(lambda: len(served.behaviour.loads) == 5)  # with that of the start
    fifth = served.admin.LoadModel(load("fifth", "quick"))
    assert await code_of(fifth) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await served.admin.UnloadModel(unload("slow"))
    assert set(await asyncio.gather(*loads)) == {grpc.StatusCode.ABORTED}
    await until_idle(served)
    assert (await served.admin.LoadModel(load("fifth", "quick"))).model.current


async def test_only_what_the_operator_allows_is_loaded(tmp_path: Path) -> None:
    for name in ("models/v1", "models/v2", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "link").symlink_to(tmp_path / "elsewhere")
    v1, v2, elsewhere, link = (
        str(tmp_path / name) for name in ("models/v1", "models/v2", "elsewhere", "models/link")
    )
    async with start_server(models={"m": v1}, load_from=[]) as served:
        assert (await served.admin.LoadModel(load("m", v2))).model.revision
        for path in (elsewhere, link, str(tmp_path / "models/../elsewhere"), "org/model", "/", "."):
            refused = served.admin.LoadModel(load("m", path))
            assert await code_of(refused) is grpc.StatusCode.PERMISSION_DENIED
        assert not set(served.behaviour.loads) - {v1, v2}


@pytest.mark.parametrize(
    ("allowed", "path", "is_allowed"),
    [
        (("org/*",), "org/model", True),
        (("org/*",), "orgs/model", False),
        (("org/model",), "org/model2", False),
        (("*",), "anything", True),
        ((), "anything", False),
        (("/",), "\0", False),
        (("/",), "a" * 5000, False),
    ],
)
def test_names_of_models(allowed: tuple[str, ...], path: str, is_allowed: bool) -> None:
    sources = AllowedSources(allowed)
    if is_allowed:
        assert sources.check(path) == path
    else:
        with pytest.raises(PermissionDenied, match="load-from"):
            sources.check(path)


def test_a_model_of_the_root_does_not_open_the_file_system() -> None:
    with pytest.raises(PermissionDenied):
        AllowedSources((), ("/usr",)).check("/etc")
