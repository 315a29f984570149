"""The one mapping of errors to status codes."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from google.rpc import code_pb2
from tests.support.in_process import field_at_fault, retry_seconds

from guerdon.serving import errors
from guerdon.serving.status import HTTP_CODES, describe

TABLE = [
    (errors.InvalidRequest("items[0]", "is wrong"), "INVALID_ARGUMENT", 400),
    (errors.NotFound("no such model"), "NOT_FOUND", 404),
    (errors.Unsupported("it cannot"), "FAILED_PRECONDITION", 400),
    (errors.CheckpointRefused("no head"), "FAILED_PRECONDITION", 400),
    (errors.Outdated("version 3 serves"), "FAILED_PRECONDITION", 400),
    (errors.UpdateRefused("not finite"), "FAILED_PRECONDITION", 400),
    (errors.Interrupted("another update began"), "ABORTED", 409),
    (errors.Overloaded("full", retry_after=0.25), "RESOURCE_EXHAUSTED", 429),
    (errors.DeadlinePassed("late"), "DEADLINE_EXCEEDED", 504),
    (errors.Cancelled("gone"), "CANCELLED", 499),
    (errors.Unavailable("draining"), "UNAVAILABLE", 503),
    (errors.Unauthenticated("who"), "UNAUTHENTICATED", 401),
    (errors.PermissionDenied("no"), "PERMISSION_DENIED", 403),
    (errors.ComputeFailed("nan"), "INTERNAL", 500),
    (asyncio.CancelledError(), "CANCELLED", 499),
    (ValueError("a secret"), "INTERNAL", 500),
]


@pytest.mark.parametrize(("error", "code", "http"), TABLE)
def test_the_table(error: BaseException, code: str, http: int) -> None:
    status = describe(error)
    assert (status.code.name, status.http_code) == (code, http)
    assert status.to_proto().code == code_pb2.Code.Value(code)
    assert status.to_json()["error"]["code"] == code


def test_every_kind_of_error_has_its_code() -> None:
    kinds = {type(error) for error, _, _ in TABLE}
    assert set(errors.ServiceError.__subclasses__()) <= kinds
    assert {describe(error).code for error, _, _ in TABLE} <= set(HTTP_CODES)


def test_a_subclass_has_the_code_of_its_parent() -> None:
    class TooLarge(errors.InvalidRequest):
        pass

    status = describe(TooLarge("items", "are too many"))
    assert (status.code, status.field) == (grpc.StatusCode.INVALID_ARGUMENT, "items")


def test_fields_and_retry_times_are_details() -> None:
    field = describe(errors.InvalidRequest("items[3].prompt", "is required"))
    assert field_at_fault(field.to_proto()) == "items[3].prompt"
    assert field.to_json()["error"]["field"] == "items[3].prompt"
    retry = describe(errors.Overloaded("full", retry_after=1.25))
    assert retry_seconds(retry.to_proto()) == 1.25
    assert retry.http_headers() == {"Retry-After": "2"}
    assert retry.to_json()["error"]["retry_after"] == 1.25


def test_unknown_errors_reveal_nothing_and_are_logged_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        status = describe(RuntimeError("password=hunter2"))
    assert "hunter2" not in status.message
    incident = status.message.rsplit(" ", 1)[1]
    assert incident in caplog.text
    assert "hunter2" in caplog.text


def test_texts_fit_a_trailer_and_are_utf8() -> None:
    status = describe(errors.InvalidRequest("f" * 5000, "\ud800" + "é" * 5000)).to_proto()
    assert len(status.SerializeToString()) < 7000
    status.message.encode()
