"""The other commands, and how the whole of them behaves."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.command import GUERDON, Run, environment, read_rows
from tests.support.formula_server import REVISION, Server, text_score

from guerdon.client import PolicyClient, TensorSpec
from guerdon.client.testing import FakePolicyServer
from guerdon.v1 import admin_pb2


def test_rank_orders_rows_best_first(run: Run) -> None:
    rows = [{"prompt": f"p{i}", "responses": [f"a{j}" for j in range(5)]} for i in range(50)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    done = run("rank", "--model", "rm", "--top-n", 2, input=data)
    assert done.returncode == 0, done.stderr
    for row, result in zip(rows, read_rows(done.stdout), strict=True):
        scores = [text_score(str(row["prompt"]), response) for response in row["responses"]]
        best = sorted(range(5), key=lambda i: scores[i], reverse=True)[:2]
        assert result == {**row, "ranking": best, "scores": scores}


def test_equal_scores_keep_their_order(run: Run) -> None:
    row = {"prompt": "p", "responses": ["same", "same", "same"]}
    done = run("rank", "--model", "rm", input=json.dumps(row).encode())
    assert read_rows(done.stdout)[0]["ranking"] == [0, 1, 2]


def test_rank_of_candidates_prints_a_table(run: Run) -> None:
    answers = ["one [bold]answer[/bold]", "another", "a third"]
    args = [part for answer in answers for part in ("--candidate", answer)]
    done = run("rank", "--model", "rm", "--prompt", "Q?", *args)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    best = sorted(answers, key=lambda answer: -text_score("Q?", answer))
    places = [text.index(answer) for answer in best]
    assert places == sorted(places)
    top = run("rank", "--model", "rm", "--prompt", "Q?", *args, "--top-n", 1).stdout.decode()
    assert [answer in top for answer in best] == [True, False, False]


@pytest.mark.parametrize(
    "args",
    [("--prompt", "Q?"), ("--candidate", "a"), ("--prompt", "Q?", "--candidate", "a", "in.jsonl")],
)
def test_half_a_question_is_refused(run: Run, args: tuple[str, ...]) -> None:
    done = run("rank", "--model", "rm", *args)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_models_as_table_and_json(run: Run) -> None:
    table = run("models").stdout.decode()
    for word in ("rm", REVISION[:12], "sequence", "packed", "quality"):
        assert word in table
    (listed,) = json.loads(run("models", "--json").stdout)
    one = json.loads(run("models", "quality", "--json").stdout)
    assert listed == one
    assert (one["name"], one["revision"], one["current"]) == ("rm", REVISION, True)
    assert (one["kind"], one["max_tokens"], one["parameters"]) == ("sequence", 2048, 134_515_008)
    described = run("models", "rm").stdout.decode()
    assert "LlamaForSequenceClassification" in described
    unknown = run("models", "nobody")
    assert (unknown.returncode, unknown.stderr.count(b"\n")) == (1, 1)


def test_policy_of_a_sampler(run: Run, server: Server) -> None:
    specs = [TensorSpec("a", "float32", (1,))]
    with FakePolicyServer() as sampler, PolicyClient(sampler.target) as client:
        fresh = run("policy", "--server", sampler.target)
        assert (fresh.returncode, fresh.stderr) == (0, b"")
        assert re.search(r"^weight version +0$", fresh.stdout.decode(), re.MULTILINE)
        client.update_weights(7, [b"four"], specs=specs)
        found = json.loads(run("policy", "--json", env={"GUERDON_SAMPLER": sampler.target}).stdout)
        assert found["weight_version"] == 7
        assert found["weight_sha256"] == hashlib.sha256(b"four").hexdigest()
        assert found["eos_token_ids"] == [2]
        assert run("health", "--server", sampler.target).stdout == b"serving\n"
        mistaken = run("models", "--server", sampler.target)
    assert (mistaken.returncode, mistaken.stderr.count(b"\n")) == (1, 1)
    assert b"`guerdon policy`" in mistaken.stderr
    other_way = run("policy", "--server", server.target)
    assert (other_way.returncode, other_way.stderr.count(b"\n")) == (1, 1)
    gone = run("policy", "--server", sampler.target, "--timeout", 1)
    assert (gone.returncode, gone.stderr.count(b"\n")) == (3, 1)


def test_health_speaks_by_its_exit_code(run: Run, server: Server) -> None:
    well = run("health")
    assert (well.returncode, well.stdout) == (0, b"serving\n")
    server.say_not_serving()
    ill = run("health")
    assert (ill.returncode, ill.stdout) == (1, b"not serving\n")
    server.close()
    gone = run("health", "--timeout", 1)
    assert (gone.returncode, gone.stderr.count(b"\n")) == (3, 1)


def test_admin_calls(run: Run, server: Server) -> None:
    assert run("admin", "load", "rm", "/models/rm", "--promote").returncode == 0
    assert run("admin", "alias", "best", "rm").returncode == 0
    assert run("admin", "alias", "best", "--delete").returncode == 0
    done = run("admin", "promote", "rm", REVISION[:8], "--unload-previous")
    assert done.stdout.decode() == f"rm: /models/rm -> {REVISION}\n"
    assert run("admin", "unload", "rm", "--revision", REVISION).returncode == 0
    assert [call.request for call in server.calls] == [
        admin_pb2.LoadModelRequest(name="rm", path="/models/rm", promote=True),
        admin_pb2.SetAliasRequest(alias="best", name="rm"),
        admin_pb2.DeleteAliasRequest(alias="best"),
        admin_pb2.PromoteModelRequest(name="rm", revision=REVISION[:8], unload_previous=True),
        admin_pb2.UnloadModelRequest(name="rm", revision=REVISION),
    ]
    refused = run("admin", "load", "rm", "missing")
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)
    assert b"there is no score head" in refused.stderr
    assert run("admin", "alias", "best").returncode == 2
    server.close()
    assert run("admin", "alias", "best", "rm", "--timeout", 1).returncode == 3


COMMANDS = ["score", "rank", "models", "health", "admin load", "admin promote"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_exit_codes(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    text = " ".join(done.stdout.decode().split())
    assert done.returncode == 0
    assert f"guerdon {command}" in text
    assert "Exit codes: 0 done; 1 the server failed" in text
    assert "GUERDON_SERVER" in text


def test_a_help_shows_brackets_and_fills_its_lines(run: Run) -> None:
    text = run("score", "--help").stdout.decode()
    assert '{"prompt": text or [messages], "responses": [text, …]}' in text
    assert '"scores": [number, …] in order.' in text
    wide = run("serve", "reward", "--help", env={"COLUMNS": "200"}).stdout.decode()
    assert "a checkpoint that would give wrong scores" in wide


def test_the_top_help_lists_all_commands(run: Run) -> None:
    done = run("--help")
    text = done.stdout.decode()
    assert done.returncode == 0
    for name in ("score", "rank", "models", "health", "admin", "serve", "train"):
        assert f" {name} " in text
    assert run().stdout == done.stdout
    assert run("--version").stdout.startswith(b"guerdon 0.")
    unknown = run("sing")
    assert (unknown.returncode, unknown.stderr.count(b"\n")) == (2, 1)


PROBE = """
import sys
from guerdon.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "vllm", "numpy", "guerdon.serving", "guerdon.trainer"}
if not sys.argv[1:] or "--help" in sys.argv:
    heavy |= {"grpc", "google.protobuf"}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], [], ["score", "--help"], ["admin", "--help"]]
)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args], capture_output=True, env=environment(), check=True
    )
    assert done.stderr.decode().splitlines()[-1] == "0 []"


def test_scoring_imports_no_torch(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a", "responses": ["b"]}')
    probe = PROBE.replace('"numpy", ', "")  # the client may use it
    args = ["score", "--server", server.target, "--model", "rm", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", probe, *args], capture_output=True, env=environment(), check=True
    )
    assert done.stderr.decode().splitlines()[-1] == "0 []"


def test_a_command_without_its_packages_says_what_to_install() -> None:
    hide = "import sys; sys.modules['prometheus_client'] = None; sys.modules['torch'] = None; "
    hide += "sys.modules['guerdon.serving.cli'] = None; sys.modules['guerdon.trainer.cli'] = None; "
    for command, extra in (("serve", "server"), ("train", "trainer")):
        code = hide + f"from guerdon.cli.main import main; sys.exit(main(['{command}', '--help']))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert f"pip install '.[{extra}]'".encode() in done.stderr


def test_an_unforeseen_error_is_a_sentence_and_a_traceback_on_request(tmp_path: Path) -> None:
    """A bug in a command: here, a plug-in that raises."""
    package = tmp_path / "plugin-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[guerdon.commands]\nboom = boom_plugin:app\n")
    (tmp_path / "boom_plugin.py").write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef go():\n    raise RuntimeError('the\\nbang')\n"
    )
    for debug in ("0", "1"):
        done = subprocess.run(
            [*GUERDON, "boom"],
            capture_output=True,
            env=environment(PYTHONPATH=str(tmp_path), GUERDON_DEBUG=debug),
            check=False,
        )
        assert done.returncode == 1
        assert (b"Traceback" in done.stderr) is (debug == "1")
        if debug == "0":
            assert done.stderr.startswith(b"guerdon: RuntimeError: the bang")
