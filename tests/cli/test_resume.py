"""A run that was cut off goes on where it was, and never mixes what doesn't belong together."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.command import Run, Start, read_rows, write_jsonl
from tests.support.formula_server import REVISION, Server, text_score

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {i}?", "responses": [f"answer {i}", "other"]} for i in range(400)
]
EXPECTED = [
    {**row, "scores": [text_score(row["prompt"], r) for r in row["responses"]]} for row in ROWS
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", ROWS)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def part_of(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def state_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.state.json")


def wait_for_rows(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Until the part file holds so many lines."""
    for _ in range(6000):
        part = part_of(out)
        if part.exists() and part.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("the rows did not come")


def begin_and_end(
    start: Start, server: Server, source: Path, out: Path, how: signal.Signals
) -> subprocess.Popen[bytes]:
    """A run that is ended by a signal in the middle."""
    server.delay_s = 0.03
    process = start("score", "--model", "rm", source, "-o", out)
    wait_for_rows(process, out, 50)
    process.send_signal(how)
    process.wait(30)
    server.delay_s = 0.0
    assert not out.exists()
    return process


@pytest.mark.parametrize("tail", [b"", b'{"prompt": "Quest', b"\0\0\0\0"])
def test_a_killed_run_is_continued(
    start: Start, run: Run, server: Server, source: Path, out: Path, tail: bytes
) -> None:
    begin_and_end(start, server, source, out, signal.SIGKILL)
    kept = part_of(out).read_bytes().count(b"\n")
    assert 50 <= kept < len(ROWS)
    with part_of(out).open("ab") as file:  # what a crash in the middle of a write leaves
        file.write(tail)
    server.seen.clear()
    done = run("score", "--model", "rm", source, "-o", out)
    assert done.returncode == 0, done.stderr
    assert read_rows(out) == EXPECTED
    assert len(server.seen) == len(ROWS) - kept  # finished rows were not scored again
    assert f"{kept} rows are there".encode() in done.stderr
    assert not part_of(out).exists()


def test_kill_at_any_byte_of_the_part_file_loses_nothing(
    start: Start, run: Run, server: Server, source: Path, out: Path
) -> None:
    begin_and_end(start, server, source, out, signal.SIGKILL)
    whole, state = part_of(out).read_bytes(), state_of(out).read_bytes()
    for size in (0, 1, len(whole) // 3, whole.rindex(b"\n"), len(whole) - 1):
        part_of(out).write_bytes(whole[:size])
        state_of(out).write_bytes(state)
        out.unlink(missing_ok=True)
        assert run("score", "--model", "rm", source, "-o", out).returncode == 0
        assert read_rows(out) == EXPECTED


def test_ctrl_c_exits_with_130_and_keeps_the_rows(
    start: Start, run: Run, server: Server, source: Path, out: Path
) -> None:
    process = begin_and_end(start, server, source, out, signal.SIGINT)
    assert process.returncode == 130
    assert process.stderr is not None
    error = process.stderr.read().decode()
    assert "guerdon: interrupted" in error
    assert "Traceback" not in error
    assert run("score", "--model", "rm", source, "-o", out).returncode == 0
    assert read_rows(out) == EXPECTED


def test_a_server_that_dies_ends_the_run_and_another_finishes_it(
    start: Start, server: Server, source: Path, out: Path
) -> None:
    server.delay_s = 0.005
    process = start("score", "--model", "rm", "--timeout", 1, source, "-o", out)
    wait_for_rows(process, out, 50)
    server.close()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 3, error
    assert error.decode().count("\n") <= 2
    assert b"Traceback" not in error
    assert not out.exists()
    kept = read_rows(part_of(out))
    assert kept == EXPECTED[: len(kept)]
    with server:
        process = start("score", "--model", "rm", source, "-o", out)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert read_rows(out) == EXPECTED


def test_standard_input_is_resumed_too(
    start: Start, run: Run, server: Server, source: Path, out: Path
) -> None:
    begin_and_end(start, server, source, out, signal.SIGKILL)
    done = run("score", "--model", "rm", "-o", out, input=source.read_bytes())
    assert (done.returncode, read_rows(out)) == (0, EXPECTED)


def test_a_finished_run_has_nothing_left_to_do(
    run: Run, server: Server, source: Path, out: Path
) -> None:
    command = ("score", "--model", "rm", source, "-o", out)
    assert run(*command).returncode == 0
    state = json.loads(state_of(out).read_bytes())
    assert (state["status"], state["rows"]) == ("complete", len(ROWS))
    server.seen.clear()
    done = run(*command)
    assert (done.returncode, server.seen) == (0, [])
    assert b"is complete already (400 rows)" in done.stderr
    state_of(out).write_text(json.dumps({**state, "status": "publishing"}))  # killed in between
    assert run(*command).returncode == 0
    assert json.loads(state_of(out).read_bytes()) == state


def test_a_row_that_stopped_the_run_can_be_mended(run: Run, source: Path, out: Path) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    source.write_bytes(b"".join([*lines[:100], b"oops\n", *lines[101:]]))
    stopped = run("score", "--model", "rm", source, "-o", out)
    assert stopped.returncode == 2
    assert f"{source}, line 101: is not JSON" in stopped.stderr.decode()
    assert read_rows(part_of(out)) == EXPECTED[:100]
    source.write_bytes(b"".join(lines))
    assert run("score", "--model", "rm", source, "-o", out).returncode == 0
    assert read_rows(out) == EXPECTED


def test_what_is_not_of_this_run_is_refused(
    start: Start, run: Run, server: Server, source: Path, out: Path, tmp_path: Path
) -> None:
    begin_and_end(start, server, source, out, signal.SIGKILL)
    before = part_of(out).read_bytes()
    other = write_jsonl(tmp_path / "other.jsonl", [{**row, "x": 1} for row in ROWS])
    short = write_jsonl(tmp_path / "short.jsonl", ROWS[:10])

    def refused(*args: object, because: str) -> None:
        done = run(*args, "-o", out)
        assert done.returncode == 2, done.stderr
        assert because in done.stderr.decode()
        assert "--restart" in done.stderr.decode()
        assert part_of(out).read_bytes() == before
        assert not out.exists()

    refused("score", "--model", "rm", other, because="not that of line 1 of this input")
    refused("score", "--model", "rm", short, because="more rows than this input")
    refused("score", "--model", "rm", "--normalize", source, because="begun with normalize false")
    refused("rank", "--model", "rm", source, because='begun with command "score"')
    server.add_revision("rm", "ffff456789abcdef")
    server.remove_revision("rm", REVISION)
    refused("score", "--model", "rm", source, because='begun with revision "0123456789abcdef"')
    done = run("score", "--model", "rm", "--restart", source, "-o", out)
    assert (done.returncode, read_rows(out)) == (0, EXPECTED)


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.part"])
def test_files_of_others_are_not_touched(run: Run, source: Path, out: Path, name: str) -> None:
    mine = out.with_name(name)
    mine.write_bytes(b"something else\n")
    done = run("score", "--model", "rm", source, "-o", out)
    assert (done.returncode, mine.read_bytes()) == (2, b"something else\n")
    assert b"--restart replaces it" in done.stderr
    assert run("score", "--model", "rm", "--restart", source, "-o", out).returncode == 0
    assert read_rows(out) == EXPECTED


def test_a_damaged_part_file_is_not_built_upon(
    start: Start, run: Run, server: Server, source: Path, out: Path
) -> None:
    begin_and_end(start, server, source, out, signal.SIGKILL)
    lines = part_of(out).read_bytes().splitlines(keepends=True)
    part_of(out).write_bytes(b"".join([*lines[:5], b"garbage\n", *lines[6:]]))
    done = run("score", "--model", "rm", source, "-o", out)
    assert done.returncode == 2
    assert b"is damaged after row 5" in done.stderr


def test_two_runs_at_once_do_not_share_an_output(
    start: Start, run: Run, server: Server, source: Path, out: Path
) -> None:
    server.delay_s = 0.03
    process = start("score", "--model", "rm", source, "-o", out)
    wait_for_rows(process, out, 20)
    second = run("score", "--model", "rm", source, "-o", out)
    assert second.returncode == 2
    assert b"Another guerdon is writing" in second.stderr
    server.delay_s = 0.0
    assert process.wait(60) == 0
    assert read_rows(out) == EXPECTED


def test_the_old_output_stays_whole_until_the_new_one_is(
    start: Start, run: Run, server: Server, source: Path, out: Path
) -> None:
    assert run("score", "--model", "rm", source, "-o", out).returncode == 0
    server.delay_s = 0.005
    process = start("score", "--model", "rm", "--restart", source, "-o", out)
    wait_for_rows(process, out, 20)
    process.kill()
    process.wait()
    assert read_rows(out) == EXPECTED
    server.delay_s = 0.0
    assert run("score", "--model", "rm", source, "-o", out).returncode == 0
    assert read_rows(out) == EXPECTED
    assert not part_of(out).exists()


def test_a_revision_that_leaves_in_the_middle_ends_the_run(
    start: Start, server: Server, source: Path, out: Path
) -> None:
    server.delay_s = 0.03
    process = start("score", "--model", "rm", source, "-o", out)
    wait_for_rows(process, out, 20)
    server.add_revision("rm", "ffff456789abcdef")
    server.remove_revision("rm", REVISION)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, out.exists()) == (1, False)
    assert b"no model 'rm@0123456789abcdef' is loaded" in error
