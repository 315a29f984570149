"""Series are there before their first event, and gone with their revision."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tests.support.in_process import until

from guerdon.v1 import admin_pb2

from .conftest import Harness
from .fake import revision_of
from .messages import score_request

FIRST, SECOND = revision_of("first")[:12], revision_of("second")[:12]


async def exposition(served: Harness) -> str:
    return (await served.http.get("/metrics")).text


async def test_what_may_happen_to_a_loaded_revision_is_there_at_0(served: Harness) -> None:
    text = await exposition(served)
    labels = f'model="m",revision="{FIRST}"'
    for line in (
        f"guerdon_nonfinite_scores_total{{{labels}}}",
        f"guerdon_truncations_total{{{labels}}}",
        f"guerdon_padding_tokens_total{{{labels}}}",
        f"guerdon_computed_tokens_total{{{labels}}}",
        f"guerdon_reused_prompt_tokens_total{{{labels}}}",
        *(
            f'guerdon_batch_failures_total{{model="m",reason="{reason}",revision="{FIRST}"}}'
            for reason in ("exception", "nonfinite", "out_of_memory")
        ),
        *(f'guerdon_shed_total{{class="{each}",model="m"}}' for each in ("online", "batch")),
        *(f'guerdon_queue_tokens{{class="{each}"}}' for each in ("online", "batch")),
        'guerdon_dropped_total{class="batch",model="m",reason="expired",stage="queued"}',
    ):
        assert f"\n{line} 0.0\n" in text, line


async def test_unloaded_revisions_leave_no_series(served: Harness) -> None:
    await served.rewards.Score(score_request())
    await served.admin.LoadModel(admin_pb2.LoadModelRequest(name="m", path="second"))
    served.behaviour.gate.clear()
    scoring = asyncio.ensure_future(served.rewards.Score(score_request()))
    await until(lambda: served.behaviour.batches > 1)
    await served.admin.PromoteModel(
        admin_pb2.PromoteModelRequest(name="m", revision=SECOND, unload_previous=True)
    )
    served.behaviour.gate.set()  # events of the old revision come after it has left the tables
    await scoring
    await until(lambda: bool(served.behaviour.closed))
    text = await exposition(served)
    assert FIRST not in text
    assert f'guerdon_nonfinite_scores_total{{model="m",revision="{SECOND}"}} 0.0' in text
    await served.rewards.Score(score_request())
    await served.admin.UnloadModel(admin_pb2.UnloadModelRequest(name="m"))
    left = [line for line in (await exposition(served)).splitlines() if 'model="m"' in line]
    assert all(line.startswith(("guerdon_model_load", "guerdon_requests_total")) for line in left)
    # The reply of UnloadModel itself was counted after its model was gone.
    assert not [line for line in left if 'method="Score"' in line]


async def test_a_revision_that_is_loaded_again_while_the_old_one_ends_keeps_its_series(
    served: Harness,
) -> None:
    served.behaviour.gate.clear()
    scoring = asyncio.ensure_future(served.rewards.Score(score_request()))
    await until(lambda: served.behaviour.batches > 0)
    unload = admin_pb2.UnloadModelRequest(name="m")
    unloading = asyncio.ensure_future(served.admin.UnloadModel(unload))
    await until(lambda: served.server.registry.canonical("m") is None)
    await served.admin.LoadModel(admin_pb2.LoadModelRequest(name="m", path="first"))
    served.behaviour.gate.set()
    await asyncio.gather(scoring, unloading)
    line = f'guerdon_nonfinite_scores_total{{model="m",revision="{FIRST}"}}'
    assert line in await exposition(served)
    await served.still_serves()


async def test_administration_is_counted(served: Harness) -> None:
    missing = admin_pb2.LoadModelRequest(name="never", path="missing")
    with pytest.raises(grpc.aio.AioRpcError):
        await served.admin.LoadModel(missing)
    await served.admin.SetAlias(admin_pb2.SetAliasRequest(alias="best", name="m"))
    await served.http.get("/v1/models")
    for labels in (
        'code="NOT_FOUND",method="LoadModel",model="unknown"',
        'code="OK",method="SetAlias",model="m"',
        'code="OK",method="http_models",model="unknown"',
    ):
        assert await served.metric(f'guerdon_requests_total{{class="online",{labels}}}') == 1.0
