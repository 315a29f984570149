"""`guerdon score`: every form of row, in order, with all that can be wrong."""

from __future__ import annotations

import gzip
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.support.command import Run, Start, read_rows, write_jsonl
from tests.support.formula_server import REVISION, Server, chat_score, text_score

from guerdon.v1 import reward_pb2

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Question {i}?", "responses": [f"answer {i}.{j}" for j in range(i % 4 + 1)], "n": i}
    for i in range(300)
]


def scored(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "scores": [text_score(row["prompt"], r) for r in row["responses"]]}


def test_rows_come_back_in_order_with_their_scores(
    run: Run, server: Server, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    done = run("score", "--server", server.target, "--model", "rm", source, "-o", out)
    assert (done.returncode, done.stdout) == (0, b"")
    assert read_rows(out) == [scored(row) for row in ROWS]
    assert b"300 rows" in done.stderr
    assert not out.with_name("out.jsonl.part").exists()
    assert {request.model for request in server.seen} == {f"rm@{REVISION}"}
    assert {request.options.priority for request in server.seen} == {
        reward_pb2.ScoreOptions(priority="PRIORITY_CLASS_BATCH").priority
    }


def test_every_form_of_row(run: Run) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    more = [*turns, {"role": "assistant", "content": "Yo"}, {"role": "user", "content": "So?"}]
    rows = [
        {"prompt": turns, "responses": ["a"]},
        {"messages": [*more, {"role": "assistant", "content": "b"}], "id": 7},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: c", "rejected": "\n\nHuman: Hi\n\nAssistant: d"},
        {
            "chosen": [*turns, {"role": "assistant", "content": "e"}],
            "rejected": [*more, {"role": "assistant", "content": "f"}],
        },
        {"prompt": "Hi", "chosen": "same", "rejected": "same"},
    ]
    expected = [
        [chat_score(turns, "a")],
        [chat_score(more, "b")],
        [chat_score(turns, "c"), chat_score(turns, "d")],
        [chat_score(turns, "e"), chat_score(more, "f")],
        [chat_score(turns, "same")] * 2,
    ]
    done = run("score", "--model", "rm", input="".join(json.dumps(r) + "\n" for r in rows).encode())
    assert done.returncode == 0, done.stderr
    assert read_rows(done.stdout) == [
        {**row, "scores": scores} for row, scores in zip(rows, expected, strict=True)
    ]


def test_other_keys_pass_through_and_stale_scores_go(run: Run) -> None:
    row = {
        "prompt": "naïve 漢字 🎈\u2028",
        "responses": ["é", ""],
        "meta": {"x": [1, 2.5, None, "\ud800"]},
        "scores": [99],
        "error": "from an earlier run",
    }
    done = run("score", "--model", "rm", "-", input=json.dumps(row).encode())
    (result,) = read_rows(done.stdout)
    del row["error"]
    assert result == scored(row)
    plain = run("score", "--model", "rm", input='{"prompt": "漢", "responses": ["🎈"]}'.encode())
    assert '"prompt": "漢"' in plain.stdout.decode()


@pytest.mark.parametrize("as_file", [True, False])
def test_a_file_that_holds_no_lines_is_named(run: Run, tmp_path: Path, as_file: bool) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps(ROWS[:2]))
    given = {"input": b""} if as_file else {"input": path.read_bytes()}
    done = run(
        "score", "--model", "rm", "--on-error", "skip", str(path) if as_file else "-", **given
    )
    assert done.returncode == 2
    assert b"the file is a JSON array, not JSON Lines: make lines of it: jq" in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("as_file", [True, False])
def test_gzip_is_read_transparently(run: Run, tmp_path: Path, as_file: bool) -> None:
    data = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS[:20]).encode())
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(data)
    done = run("score", "--model", "rm", path if as_file else "-", input=b"" if as_file else data)
    assert read_rows(done.stdout) == [scored(row) for row in ROWS[:20]]


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_input_gives_an_empty_output(run: Run, tmp_path: Path, data: bytes) -> None:
    out = tmp_path / "out.jsonl"
    assert run("score", "--model", "rm", "-o", out, input=data).returncode == 0
    assert out.read_bytes() == b""


BAD = [
    (b"{", "is not JSON: Expecting property name"),
    (b"\xff\xfe", "is not valid UTF-8"),
    (b'{"prompt": "a"}', 'has no "responses"'),
    (b'{"prompt": "a", "responses": []}', "responses: must be a non-empty list of texts"),
    (b'{"prompt": "a", "responses": ["poison"]}', "is poison"),
    (b'{"prompt": "a", "responses": ["nan"]}', "not a finite number"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_bad_row_stops_the_run_and_names_its_line(
    run: Run, tmp_path: Path, bad: bytes, reason: str
) -> None:
    good = b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\n\n"
    source = tmp_path / "in.jsonl"
    source.write_bytes(good + bad + b"\n" + json.dumps(ROWS[1]).encode())
    done = run("score", "--model", "rm", source)
    assert done.returncode == 2
    message = done.stderr.decode()
    assert message.startswith(f"guerdon: {source}, line 3: ")
    assert reason in message
    assert message.count("\n") == 1
    assert read_rows(done.stdout) == [scored(ROWS[0])]  # what came before is not lost


def test_bad_rows_are_skipped_on_request_and_counted(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps(ROWS[0]).encode(), *(bad for bad, _ in BAD), json.dumps(ROWS[1]).encode()]
    source.write_bytes(b"\n".join(lines))
    done = run("score", "--model", "rm", "--on-error", "skip", source, "-o", out)
    assert done.returncode == 4
    assert b"6 rows failed" in done.stderr
    rows = read_rows(out)
    assert (rows[0], rows[-1]) == (scored(ROWS[0]), scored(ROWS[1]))
    for number, (row, (_, reason)) in enumerate(zip(rows[1:-1], BAD, strict=True), 2):
        assert row["scores"] is None
        assert row["error"].startswith(f"line {number}: ")
        assert reason in row["error"]
    again = run("score", "--model", "rm", "--on-error", "skip", source, "-o", out)
    assert (again.returncode, b"complete already" in again.stderr) == (4, True)


def test_a_row_too_large_for_the_server_fails_alone(run: Run) -> None:
    rows = [ROWS[0], {"prompt": "x" * 10_000_000, "responses": ["y"]}, ROWS[1]]
    rows.insert(2, {"prompt": "x" * 20_000_000, "responses": ["y"]})
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    done = run("score", "--model", "rm", "--on-error", "skip", input=data)
    assert done.returncode == 4, done.stderr
    results = read_rows(done.stdout)
    assert [results[i] for i in (0, 1, 3)] == [scored(rows[i]) for i in (0, 1, 3)]
    assert results[2]["scores"] is None
    assert results[2]["error"].startswith("line 3: ")


def test_a_slow_row_holds_back_only_a_window_of_others(
    start: Start, server: Server, tmp_path: Path
) -> None:
    rows = [{"prompt": "hold", "responses": ["a"]}, *({**r, "responses": ["b"]} for r in ROWS)]
    source, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    process = start("score", "--model", "rm", "--in-flight", 4, source, "-o", out)
    window = 4 * 4  # items in flight × rows held for each
    for _ in range(600):
        if len(server.seen) >= window - 1:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(server.seen) == window - 1  # all but the held one; no more were taken
    assert out.with_name("out.jsonl.part").read_bytes() == b""
    server.release.set()
    assert process.wait(60) == 0
    assert read_rows(out) == [scored(row) for row in rows]


def test_what_is_wrong_for_every_row_is_not_skipped(run: Run, server: Server) -> None:
    server.fail(grpc.StatusCode.FAILED_PRECONDITION, "the model has no statistics")
    row = json.dumps(ROWS[0]).encode()
    done = run("score", "--model", "rm", "--normalize", "--on-error", "skip", input=row)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"no statistics" in done.stderr


def test_options_reach_the_server(run: Run, server: Server) -> None:
    options = [
        "--normalize",
        "--activation",
        "sigmoid",
        "--truncation",
        "prompt-left",
        "--priority",
        "online",
    ]
    row = json.dumps(ROWS[3]).encode()
    done = run("score", "--model", "rm", *options, "--details", "--token", "secret", input=row)
    assert done.returncode == 0, done.stderr
    asked = server.seen[0].options
    assert asked == reward_pb2.ScoreOptions(
        priority="PRIORITY_CLASS_ONLINE",
        truncation="TRUNCATION_PROMPT_LEFT",
        activation="ACTIVATION_SIGMOID",
        normalize=True,
    )
    assert server.calls[-1].metadata["authorization"] == "Bearer secret"
    (result,) = read_rows(done.stdout)
    assert len(result["details"]) == len(result["scores"]) == 4
    detail = result["details"][0]
    assert (detail["token_count"], detail["reused_tokens"]) == (7, 2)
    assert (detail["attributes"], detail["members"], detail["steps"]) == ({"helpful": 0.5}, [], [])


def test_a_pipe_is_answered_while_it_stays_open(start: Start) -> None:
    process = start("score", "--model", "rm", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for row in ROWS[:3]:
        process.stdin.write(json.dumps(row).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == scored(row)
    process.stdin.close()
    assert process.wait(30) == 0


def test_a_reader_that_leaves_ends_it_quietly(start: Start, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS * 20)
    process = start("score", "--model", "rm", source)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""


def test_unknown_model_and_unreachable_server(run: Run, server: Server) -> None:
    row = json.dumps(ROWS[0]).encode()
    unknown = run("score", "--model", "nobody", input=row)
    assert (unknown.returncode, unknown.stderr.count(b"\n")) == (1, 1)
    assert b"no model 'nobody' is loaded" in unknown.stderr
    server.close()
    gone = run("score", "--model", "rm", "--timeout", 2, "--wait", 0, input=row)
    assert (gone.returncode, gone.stderr.count(b"\n")) == (3, 1)
    assert server.target.encode() in gone.stderr


def test_wrong_paths_are_one_sentence(run: Run, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS[:1])
    cases = [
        (("score", "--model", "rm", tmp_path / "none.jsonl"), "No such file"),
        (("score", "--model", "rm", tmp_path), "Is a directory"),
        (("score", "--model", "rm", source, "-o", source), "both the input and the output"),
        (("score", "--model", "rm", source, "-o", tmp_path), "is a folder"),
        (("score", "--model", "rm", source, "-o", tmp_path / "o.jsonl.gz"), "not gzip"),
        (("score", "--server", "http://x:1", "--model", "rm", source), "without a scheme"),
        (("score", source), "Missing option '--model'"),
        (("score", "--modle", "rm"), "--modle"),
        (("score", "--model", "rm", "--on-error", "maybe"), "'maybe'"),
        (("score", "--model", "rm", "--tls-ca", tmp_path / "ca.pem", source), "No such file"),
    ]
    for args, message in cases:
        done = run(*args)
        error = done.stderr.decode()
        assert (done.returncode, done.stdout) == (2, b""), error
        assert message in error
        assert error.startswith("guerdon: ")
        assert error.count("\n") == 1
    assert read_rows(source) == ROWS[:1]


def test_progress_is_silent_off_a_terminal(run: Run, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS[:2])
    quiet = run("score", "--model", "rm", source, "-o", tmp_path / "out.jsonl")
    assert quiet.stderr.startswith(b"guerdon: 8 scores") or quiet.stderr.count(b"\n") == 1
    assert b"\x1b" not in quiet.stderr


def test_a_device_is_written_to_as_it_is(run: Run, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS[:2])
    assert run("score", "--model", "rm", source, "-o", "/dev/null").returncode == 0
    assert not Path("/dev/null").is_file()
