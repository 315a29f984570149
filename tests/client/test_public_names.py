"""What users may import, and that it stays light."""

from __future__ import annotations

import subprocess
import sys

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2

import guerdon.client as api
from guerdon.client import errors

NAMES = [
    "Aborted",
    "AdminClient",
    "AsyncAdminClient",
    "AsyncPolicyClient",
    "AsyncRewardClient",
    "AttributeInfo",
    "Canary",
    "Cancelled",
    "Clock",
    "Completion",
    "CompletionProgress",
    "Conversation",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "FormattedText",
    "GenerateItem",
    "GuerdonError",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemScores",
    "Limits",
    "MixedRevisions",
    "ModelInfo",
    "Nccl",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PolicyClient",
    "PolicyInfo",
    "Promotion",
    "Prompt",
    "RankResult",
    "RankedCandidate",
    "Response",
    "Retry",
    "RewardClient",
    "Score",
    "ScoreResult",
    "ScoringInfo",
    "ScoringOptions",
    "SharedPath",
    "StepScore",
    "StreamResult",
    "TLS",
    "TensorSpec",
    "Timing",
    "TokenIds",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VersionSpan",
    "WeightUpdate",
]


def test_exported_names() -> None:
    assert sorted(api.__all__) == sorted(NAMES)
    public = {n for n in vars(api) if not n.startswith("_")}
    modules = {"admin", "aio", "config", "errors", "sync", "testing", "types"}
    modules |= {"policy", "policy_types"}
    assert public - modules == set(NAMES)


def test_the_sync_clients_have_the_methods_of_the_async_ones() -> None:
    def methods(kind: type) -> set[str]:
        return {n for n in dir(kind) if not n.startswith("_")}

    assert methods(api.RewardClient) == methods(api.AsyncRewardClient)
    assert methods(api.AdminClient) == methods(api.AsyncAdminClient)
    assert methods(api.PolicyClient) == methods(api.AsyncPolicyClient)


def test_the_error_tree_is_that_of_the_docstring() -> None:
    assert errors.__doc__ is not None
    own = [k for k in vars(errors).values() if getattr(k, "__module__", "") == errors.__name__]
    kinds = [k for k in own if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) == 14
    for kind in kinds:
        assert kind.__name__ in errors.__doc__
        assert issubclass(kind, api.GuerdonError)


def test_every_status_code_becomes_an_error_that_keeps_it() -> None:
    for code in grpc.StatusCode:
        if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            continue
        status = status_pb2.Status(code=getattr(code_pb2, code.name), message="m")
        error = errors.from_status(status)
        assert (error.code, str(error), error.details) == (code, "m", ())
    assert errors.from_status(status_pb2.Status(code=999)).code is grpc.StatusCode.UNKNOWN


def test_a_cancellation_that_the_caller_did_not_ask_for_is_unavailable() -> None:
    error = errors.from_status(status_pb2.Status(code=code_pb2.CANCELLED, message="m"))
    assert isinstance(error, api.Unavailable)
    assert (error.code, str(error)) == (grpc.StatusCode.UNAVAILABLE, "the server ended the call: m")


def test_details_are_decoded_and_strange_ones_left_out() -> None:
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="m")
    violation = error_details_pb2.BadRequest.FieldViolation(field="items[0]", description="d")
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    status.details.append(AnyMessage(type_url="type.googleapis.com/no.Such", value=b"x"))
    broken = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff\xff")
    status.details.append(broken)
    error = errors.from_status(status)
    assert isinstance(error, api.InvalidArgument)
    assert error.field_violations == (api.FieldViolation("items[0]", "d"),)
    assert error.retry_after is None


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, guerdon.client\n"
        "assert 'guerdon.client.testing' not in sys.modules\n"
        "import guerdon.client.testing\n"
        "import guerdon.integrations.best_of_n, guerdon.integrations.trl\n"
        "import guerdon.integrations.verifiers\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'typer', 'rich'} & set(sys.modules)\n"
        "heavy |= {'trl', 'verl', 'verifiers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
