"""Go's stubs from our protos, by the plugins of Debian."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.packages import need_program, run_program

from .test_node import PROTOS

PLUGINS = ("protoc-gen-go", "protoc-gen-go-grpc")


def test_go_stubs(tmp_path: Path) -> None:
    """protoc needs no other include path than ours, and no option for a package's name."""
    plugins = [f"--plugin={name}={need_program(name, *PLUGINS)}" for name in PLUGINS]
    command = [
        *(sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{PROTOS}", *plugins),
        *(f"--go_out={tmp_path}", f"--go-grpc_out={tmp_path}"),
        *map(str, sorted((PROTOS / "guerdon").rglob("*.proto"))),
    ]
    run_program(*command)
    package = tmp_path / "guerdon" / "v1"
    protos = {path.stem for path in (PROTOS / "guerdon" / "v1").glob("*.proto")}
    assert {path.name.split(".")[0] for path in package.glob("*.pb.go")} >= protos
    assert "type RewardServiceClient interface" in (package / "reward_grpc.pb.go").read_text()
    imported = (package / "reward.pb.go").read_text()
    assert "package guerdonv1" in imported
    assert '"google.golang.org/genproto/googleapis/rpc/status"' in imported
