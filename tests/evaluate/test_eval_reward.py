"""`guerdon eval reward` over a real socket: what it says of scores that are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.support.command import read_rows
from tests.support.tools import ASKED, CALL, RESULT, WEATHER, as_sent
from tests.trainer.toy import write_rows

from guerdon.cli.main import main
from guerdon.client.testing import FakeRewardServer
from guerdon.data import Conversation, RowError
from guerdon.trainer.evaluate.comparisons import parser
from guerdon.trainer.evaluate.findings import SECTIONS, sections

USER = {"role": "user", "content": "q"}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def number(prompt: Any, response: Any) -> float:
    """The score of an answer is the number that it is."""
    return float(response)


@pytest.fixture
def server() -> Iterator[FakeRewardServer]:
    with FakeRewardServer(number, models=("fake", "other")) as server:
        yield server


def evaluate(
    server: FakeRewardServer, data: Path, *more: str, capfd: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    arguments = ["eval", "reward", str(data), "--server", server.target, "--model", "fake"]
    assert main([*arguments, "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_accuracy_overall_and_by_subset(
    server: FakeRewardServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "q", "chosen": "3", "rejected": "1", "subset": "a"},
        {"prompt": "q", "chosen": "1", "rejected": "2", "subset": "a"},
        {"prompt": "q", "chosen": "2", "rejected": "2.0", "subset": "[/b]"},  # a tie is wrong
        {"prompt": "q", "chosen": ["5"], "rejected": ["1", "2", "3"], "subset": "[/b]"},
        {"prompt": "q", "chosen": ["5", "2"], "rejected": ["1", "3"], "subset": "[/b]"},
        {  # answers that differ before their last turn
            "prompt": "q",
            "chosen": [says("x"), USER, says("9")],
            "rejected": [says("7")],
        },
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "scores.jsonl"
    found = evaluate(server, data, "-o", str(output), capfd=capfd)
    (model,) = found["models"]
    assert (model["model"], model["revision"], model["comparisons"]) == ("fake", "rev-1", 6)
    # All are of one prompt, so nothing says how prompts differ.
    assert model["accuracy"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 6}
    assert {name: (p["value"], p["n"]) for name, p in model["subsets"].items()} == {
        "": (1.0, 1),
        "a": (0.5, 2),
        "[/b]": (pytest.approx(1 / 3), 3),
    }
    assert (model["ties"], model["mean_margin"]) == (1, pytest.approx((2 - 1 + 0 + 2 - 1 + 2) / 6))
    assert model["sections"] == {}
    written = read_rows(output)
    assert [row["line"] for row in written] == [1, 2, 3, 4, 5, 6]
    assert written[4]["scores"] == {"chosen": [5.0, 2.0], "rejected": [1.0, 3.0]}
    assert written[5]["scores"] == {"chosen": [9.0], "rejected": [7.0]}
    assert main(["eval", "reward", str(data), "--server", server.target, "--model", "fake"]) == 0
    out, err = capfd.readouterr()
    assert "[/b]" in out + err  # a name is never read as markup


def test_two_models_are_compared(
    server: FakeRewardServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"prompt": f"q{i}", "chosen": f"{draw.normal():.6f}", "rejected": f"{draw.normal():.6f}"}
        for i in range(40)
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    server.add_revision("other", "rev-2", lambda prompt, response: -2 * float(response))
    found = evaluate(server, data, "--against", "other", capfd=capfd)
    one, other = found["models"]
    assert one["accuracy"]["value"] + other["accuracy"]["value"] == pytest.approx(1)
    assert found["agreement"]["same_order"]["value"] == 0
    assert found["agreement"]["margin_rank_correlation"] == pytest.approx(-1)
    biggest = max(abs(float(row[side])) for row in rows for side in ("chosen", "rejected"))
    assert found["agreement"]["largest_difference"] == pytest.approx(3 * biggest)


def test_what_the_server_refuses_stops_it_or_is_counted(
    server: FakeRewardServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [{"prompt": "q", "chosen": str(i), "rejected": "0"} for i in range(1, 5)] + [
        {"prompt": "q"}
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    arguments = ["eval", "reward", str(data), "--server", server.target, "--model", "fake"]
    assert main(arguments) == 2
    assert "line 5: chosen: is missing" in capfd.readouterr().err
    rows.pop()
    write_rows(data, rows)
    server.fail(grpc.StatusCode.INVALID_ARGUMENT, "too long", method="ScoreStream")
    assert main(arguments) == 2
    assert "the server refuses it: too long" in capfd.readouterr().err
    server.fail(grpc.StatusCode.INVALID_ARGUMENT, "too long", method="ScoreStream")
    assert main([*arguments, "--on-error", "skip"]) == 0
    printed = capfd.readouterr().out
    assert "1 rows were refused by the server" in printed
    assert "1.000" in printed
    assert main([*arguments[:-1], "unknown"]) == 1
    assert "unknown" in capfd.readouterr().err
    assert (
        main(
            [
                "eval",
                "reward",
                str(data),
                "--server",
                "127.0.0.1:1",
                "--model",
                "fake",
                "--wait",
                "0",
            ]
        )
        == 3
    )


def test_a_promotion_in_the_middle_changes_nothing(
    server: FakeRewardServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The revision is asked for by its name, so all scores are of one model."""
    data = write_rows(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "2", "rejected": "1"}])
    evaluate(server, data, capfd=capfd)
    asked = [call.request for call in server.calls if call.method == "ScoreStream"]
    assert {str(request).count("fake@rev-1") for request in asked} == {1}


def test_rewardbench_sections_weigh_as_its_own() -> None:
    """Its published counts; maths counts as much as all code."""
    counts = {"math-prm": 447} | dict.fromkeys(SECTIONS["Reasoning"][1:], 164)
    values = {"math-prm": 0.5} | dict.fromkeys(SECTIONS["Reasoning"][1:], 0.9)
    parts = {name: {"value": values[name], "n": n} for name, n in counts.items()}
    assert sections(parts) == {"Reasoning": pytest.approx((984 * 0.5 + 984 * 0.9) / 1968)}
    assert sections({**parts, "mine": {"value": 1.0, "n": 1}}) == {}
    every = {name: {"value": 1.0, "n": 1} for names in SECTIONS.values() for name in names}
    assert sections(every)["mean"] == 1.0
    assert sections({}) == {}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": ["a"], "rejected": ["b"]}, "prompt: is missing"),
        ({"prompt": "q", "chosen": ["a"], "rejected": []}, "rejected: must be a non-empty list"),
        ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "rejected: must be a non-empty list"),
        ({"prompt": "q", "chosen": ["a"], "rejected": ["b", "a"]}, "an answer that chosen has too"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "subset": [1]}, "subset: must be text"),
    ],
)
def test_what_is_no_comparison(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parser("subset")(row)


def test_the_server_is_asked_with_tools_and_calls_of_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def calls(prompt: Any, response: Any) -> float:
        asked.append((prompt, response))
        return float("tool_calls" in response)

    sent = [as_sent(turn) for turn in ASKED]
    rows = [
        {"prompt": sent, "chosen": [as_sent(CALL)], "rejected": "No.", "tools": [WEATHER]},
        {"prompt": "Warm?", "chosen": ["Yes."], "rejected": ["No."], "tools": [WEATHER]},
        {
            "prompt": ASKED,
            "chosen": [CALL, RESULT, CALL],
            "rejected": [says("No.")],
            "tools": json.dumps([WEATHER]),
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    with FakeRewardServer(calls) as server:
        (model,) = evaluate(server, data, capfd=capfd)["models"]
    assert model["accuracy"]["value"] == pytest.approx(2 / 3)
    user = {"role": "user", "content": "Warm?"}
    quiet = {"enable_thinking": False}
    prompts = [
        Conversation((*turns,), (WEATHER,), kwargs)
        for turns, kwargs in (
            (ASKED, {}),
            (ASKED, {}),
            ([user], {}),
            ([user], {}),
            ([*ASKED, CALL, RESULT], quiet),
            (ASKED, quiet),
        )
    ]
    assert [prompt for prompt, _ in asked] == prompts
    assert [response for _, response in asked] == [CALL, "No.", "Yes.", "No.", CALL, "No."]
