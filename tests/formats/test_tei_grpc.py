"""Clients of text-embeddings-inference's gRPC API get the native API's scores in its shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.in_process import details, field_at_fault

from guerdon.reward.wire.tei.v1 import tei_pb2 as tei
from guerdon.reward.wire.tei.v1 import tei_pb2_grpc

from .conftest import ANSWER, LABEL, QUESTION, WHOLE, Formats
from .test_formats import DOCUMENTS, close, sigmoid

LONG = "x" * 5000
"""More than the model reads."""


@pytest.fixture
def channel(formats: Formats) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(formats.server.address) as channel:
        yield channel


@pytest.fixture
def predict(channel: grpc.Channel) -> Any:
    return tei_pb2_grpc.PredictStub(channel)


@pytest.fixture
def rerank(channel: grpc.Channel) -> Any:
    return tei_pb2_grpc.RerankStub(channel)


def test_names_on_the_wire_are_those_of_tei(channel: grpc.Channel) -> None:
    """By name and field number alone, as a client with stubs of its own calls."""
    call: Any = channel.unary_unary("/tei.v1.Predict/Predict")
    inputs, raw_scores = b"\x0a\x03Hey", b"\x18\x01"
    reply = tei.PredictResponse.FromString(call(inputs + raw_scores, timeout=60))
    assert [each.label for each in reply.predictions] == [LABEL]
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("tei.v1.Info", "tei.v1.Predict", "tei.v1.Rerank"):
        request = health_pb2.HealthCheckRequest(service=name)
        assert health.Check(request, timeout=60).status == health_pb2.HealthCheckResponse.SERVING


def test_info(formats: Formats, channel: grpc.Channel) -> None:
    info = tei_pb2_grpc.InfoStub(channel).Info(tei.InfoRequest(), timeout=60)
    (model,) = formats.http.get("/v1/models").json()["models"]
    assert (info.model_id, info.model_sha) == ("tiny", model["revision"])
    assert info.model_type == tei.MODEL_TYPE_RERANKER
    assert info.max_input_length == model["max_tokens"]
    assert info.version == formats.http.get("/version").json()["version"]


def test_predict(formats: Formats, predict: Any) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    raw = predict.Predict(tei.PredictRequest(inputs=WHOLE, raw_scores=True), timeout=60)
    assert [each.score for each in raw.predictions] == [close(score)]
    plain = predict.Predict(tei.PredictRequest(inputs=WHOLE), timeout=60)
    assert [each.score for each in plain.predictions] == [close(sigmoid(score))]


def test_predict_pair(formats: Formats, predict: Any) -> None:
    (score,) = formats.native(QUESTION, ANSWER)
    request = tei.PredictPairRequest(inputs=[QUESTION, ANSWER], raw_scores=True)
    reply = predict.PredictPair(request, timeout=60)
    assert [each.score for each in reply.predictions] == [close(score)]
    one = tei.PredictPairRequest(inputs=[WHOLE], raw_scores=True)
    assert predict.PredictPair(one, timeout=60).predictions[0].score == close(score)


def test_metadata_says_what_was_computed(formats: Formats, predict: Any) -> None:
    body = {"model": "tiny", "items": [{"prompt": QUESTION, "responses": [ANSWER]}]}
    (score,) = formats.post("/v1/score", body)["items"][0]["scores"]
    reply = predict.PredictPair(tei.PredictPairRequest(inputs=[QUESTION, ANSWER]), timeout=60)
    found = reply.metadata
    assert found.compute_tokens == score["token_count"]
    assert found.compute_chars == len(QUESTION) + len(ANSWER)
    assert 0 < found.inference_time_ns <= found.total_time_ns


def test_streams_answer_each_request_in_order(formats: Formats, predict: Any) -> None:
    documents = [*DOCUMENTS, "Wet.", "x " * 80, "Dry."]
    requests = [tei.PredictPairRequest(inputs=[QUESTION, d], raw_scores=True) for d in documents]
    replies = list(predict.PredictPairStream(iter(requests * 50), timeout=120))
    scores = [reply.predictions[0].score for reply in replies]
    assert scores == [close(s) for s in formats.native(QUESTION, *documents) * 50]
    texts = [tei.PredictRequest(inputs=d, raw_scores=True) for d in documents]
    alone = [predict.Predict(text, timeout=60).predictions[0].score for text in texts]
    streamed = predict.PredictStream(iter(texts), timeout=120)
    assert [reply.predictions[0].score for reply in streamed] == [close(s) for s in alone]


def test_an_error_ends_a_stream_after_the_replies_before_it(predict: Any) -> None:
    requests = [tei.PredictRequest(inputs=text) for text in ("a", "b", LONG, "c")]
    replies = predict.PredictStream(iter(requests), timeout=60)
    assert [len(next(replies).predictions) for _ in "ab"] == [1, 1]
    with pytest.raises(grpc.RpcError) as error:
        next(replies)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_at_fault(details(error.value)) == "inputs[0]"


def test_rerank(formats: Formats, rerank: Any) -> None:
    scores = formats.native(QUESTION, *DOCUMENTS)
    request = tei.RerankRequest(query=QUESTION, texts=DOCUMENTS, raw_scores=True)
    ranks = rerank.Rerank(request, timeout=60).ranks
    assert {rank.index: rank.score for rank in ranks} == {i: close(s) for i, s in enumerate(scores)}
    assert [rank.score for rank in ranks] == sorted((r.score for r in ranks), reverse=True)
    assert not any(rank.HasField("text") for rank in ranks)
    request = tei.RerankRequest(query=QUESTION, texts=DOCUMENTS, return_text=True)
    for rank in rerank.Rerank(request, timeout=60).ranks:
        assert (rank.text, rank.score) == (
            DOCUMENTS[rank.index],
            close(sigmoid(scores[rank.index])),
        )


def test_rerank_stream_is_rerank(rerank: Any) -> None:
    whole = tei.RerankRequest(query=QUESTION, texts=DOCUMENTS, raw_scores=True, return_text=True)
    requests = [  # only the first one's `raw_scores` and `return_text` count
        tei.RerankStreamRequest(query=QUESTION, text=text, raw_scores=not i, return_text=not i)
        for i, text in enumerate(DOCUMENTS)
    ]
    expected, found = (
        rerank.Rerank(whole, timeout=60),
        rerank.RerankStream(iter(requests), timeout=60),
    )
    assert [(r.index, r.text) for r in found.ranks] == [(r.index, r.text) for r in expected.ranks]
    assert [r.score for r in found.ranks] == [close(r.score) for r in expected.ranks]
    assert found.metadata.compute_tokens == expected.metadata.compute_tokens


def test_only_the_left_is_cut(formats: Formats, predict: Any) -> None:
    cut = {"inputs": [f"{LONG} {QUESTION}", ANSWER], "truncate": True}
    left = tei.PredictPairRequest(
        **cut, raw_scores=True, truncation_direction=tei.TRUNCATION_DIRECTION_LEFT
    )
    body = {"model": "tiny", "items": [{"prompt": cut["inputs"][0], "responses": [ANSWER]}]}
    native = formats.post("/v1/score", {**body, "options": {"truncation": "prompt_left"}})
    score = native["items"][0]["scores"][0]["score"]
    assert predict.PredictPair(left, timeout=60).predictions[0].score == close(score)
    refused(predict.PredictPair, tei.PredictPairRequest(**cut), "truncation_direction")


def test_errors_name_the_field(predict: Any, rerank: Any) -> None:
    refused(predict.Predict, tei.PredictRequest(inputs=LONG), "inputs[0]")
    refused(predict.PredictPair, tei.PredictPairRequest(), "inputs")
    refused(predict.PredictPair, tei.PredictPairRequest(inputs=["a", "b", "c"]), "inputs")
    refused(rerank.Rerank, tei.RerankRequest(query="a"), "texts")
    refused(rerank.Rerank, tei.RerankRequest(query="a", texts=["b", LONG]), "texts[1]")
    refused(rerank.RerankStream, iter(()), "texts")
    queries = [tei.RerankStreamRequest(query=query, text="b") for query in "ac"]
    refused(rerank.RerankStream, iter(queries), "query")


def test_a_rerank_stream_holds_as_many_bytes_as_one_message(rerank: Any) -> None:
    requests = [tei.RerankStreamRequest(query="a", text="x" * 2**20)] * 17
    refused(rerank.RerankStream, iter(requests), "text")


def refused(method: Any, request: Any, where: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        method(request, timeout=60)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field_at_fault(details(error.value)) == where
