"""`guerdon score` and `rank` before their server is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.command import Run, Start, read_rows, write_jsonl
from tests.support.formula_server import Server

ROWS = [{"prompt": "q", "responses": ["a", "bb"]}]


def test_score_waits_for_a_server_that_is_starting(
    start: Start, server: Server, tmp_path: Path
) -> None:
    source, out = write_jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    server.close()
    process = start("score", "--model", "rm", source, "-o", out)
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    assert said.startswith(f"{server.target}: cannot connect to "), said
    assert "; trying again for up to " in said
    with server:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert [len(row["scores"]) for row in read_rows(out)] == [2]


@pytest.mark.parametrize("command", ["score", "rank"])
@pytest.mark.parametrize(("wait", "lines"), [(0, 1), (3, 2)])
def test_the_wait_is_bounded(
    run: Run, server: Server, tmp_path: Path, command: str, wait: int, lines: int
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    server.close()
    done = run(command, "--model", "rm", source, "--wait", wait)
    assert (done.returncode, done.stderr.count(b"\n")) == (3, lines), done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"guerdon: cannot connect to ")


def test_ranking_candidates_waits_no_longer(run: Run, server: Server) -> None:
    server.close()
    asked = ("--prompt", "q", "--candidate", "a", "--wait", 0)
    done = run("rank", "--model", "rm", *asked)
    assert (done.returncode, done.stderr.count(b"\n")) == (3, 1), done.stderr
