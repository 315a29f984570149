"""gRPC from another language: a real client of Node, and stubs of TypeScript, from our protos."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from tests.support.packages import node_modules_with, run_program
from tests.support.server import ROOT

from .conftest import ANSWER, QUESTION, Formats
from .test_formats import close

PROTOS = ROOT / "protos"
PACKAGES = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1", "@bufbuild/protoc-gen-es@2.17.0")
ANSWERS = ["Rain.", ANSWER, "Mud"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm"),
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of npm."""
    return node_modules_with(tmp_path_factory.mktemp("node"), *PACKAGES)


def test_a_node_client_scores_streams_and_reads_error_details(
    formats: Formats, modules: Path
) -> None:
    program = Path(__file__).with_name("node_client.js")
    command = ("node", program, PROTOS, formats.server.address, QUESTION, *ANSWERS)
    found = json.loads(run_program(*command, NODE_PATH=str(modules)))
    expected = [close(score) for score in formats.native(QUESTION, *ANSWERS)]
    assert [score["score"] for score in found["score"]["items"][0]["scores"]] == expected
    streamed = [found["stream"][f"r{place}"]["scores"] for place in range(3)]
    assert [reply["item"]["scores"][0]["score"] for reply in streamed] == expected
    assert "too long" in found["stream"]["r3"]["error"]["message"]
    assert found["error"]["code"] == "INVALID_ARGUMENT"
    (detail,) = found["error"]["details"]
    (violation,) = detail["fieldViolations"]
    assert violation["field"] == "items[1].responses[0]"


def test_typescript_stubs(modules: Path, tmp_path: Path) -> None:
    """protoc needs no other include path than ours."""
    plugin = modules / ".bin" / "protoc-gen-es"
    run_program(
        *(sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{PROTOS}"),
        *(f"--plugin=protoc-gen-es={plugin}", f"--es_out={tmp_path}", "--es_opt=target=ts"),
        *sorted(PROTOS.rglob("*.proto")),
    )
    text = (tmp_path / "guerdon" / "v1" / "reward_pb.ts").read_text()
    assert "export const RewardService" in text
