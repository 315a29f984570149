"""`GET /info`, as text-embeddings-inference answers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from guerdon.reward.wire.tei.v1 import tei_pb2, tei_pb2_grpc

from .conftest import Harness, start_server

TWO = {"m": "first", "n": "second"}


async def test_http_tells_what_grpc_tells(served: Harness) -> None:
    reply = await served.http.get("/info")
    assert reply.status_code == 200
    stub: Any = tei_pb2_grpc.InfoStub(served.channel)
    told = MessageToDict(
        await stub.Info(tei_pb2.InfoRequest(), timeout=30), preserving_proto_field_name=True
    )
    assert told.pop("model_type") == "MODEL_TYPE_RERANKER"
    # What `Info` of router/src/lib.rs has beside, at commit 0d124dc.
    assert reply.json() == {
        **told,
        "served_model_name": "m",
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "auto_truncate": False,
        "sha": None,
        "docker_label": None,
    }
    assert told["model_id"] == "m"


async def test_the_model_is_the_default_or_named_in_the_path() -> None:
    async with start_server(models=TWO, formats={"default_model": "n"}) as served:
        for path, model in (("/info", "n"), ("/models/m/info", "m")):
            assert (await served.http.get(path)).json()["model_id"] == model
        refused = await served.http.get("/models/other/info")
        assert (refused.status_code, refused.json()["error_type"]) == (404, "Validation")


async def test_several_models_and_no_default_are_refused() -> None:
    async with start_server(models=TWO) as served:
        refused = await served.http.get("/info")
    assert refused.status_code == 422
    assert refused.json() == {
        "error": "model: is required: m, n are served",
        "error_type": "Validation",
    }


async def test_it_wants_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("sesame")
    async with start_server(token_file=file) as served:
        assert (await served.http.get("/info")).status_code == 401
        token = {"authorization": "Bearer sesame"}
        assert (await served.http.get("/info", headers=token)).status_code == 200
