"""`guerdon compare` on folders with known numbers: what is compared, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compare.support import (
    START,
    scores,
    write_aligned,
    write_evaluation,
    write_reinforced,
    write_rows,
)
from tests.fine_tune.support import run as align_run
from tests.fine_tune.support import settings_of
from tests.support.command import read_rows
from tests.support.tiny import tiny_checkpoint
from tests.trainer.toy import write_toy

from guerdon.cli import plugins
from guerdon.cli.main import main
from guerdon.trainer.common.measuring.statistics import estimate, paired
from guerdon.trainer.compare.comparison import at_level

N = 24
Compare = Callable[..., tuple[int, str, str]]
"""Exit code, standard output and standard error of the command with these arguments."""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Compare:
    """The command, whether the installed package knows of it already or not."""
    entry = EntryPoint("compare", "guerdon.trainer.compare.cli:app", plugins.GROUP)
    monkeypatch.setattr(plugins, "discover", lambda: {"compare": entry})
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["compare", *map(str, arguments)])
        found = capfd.readouterr()
        return code, found.out, found.err

    return run


def as_json(compare: Compare, *arguments: object) -> dict[str, Any]:
    code, out, err = compare(*arguments, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def by_name(group: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in group["runs"]}


def start(folder: Path, **more: Any) -> Path:
    given = {"second": scores(N, -1.0, 2), "policy": START} | more
    return write_evaluation(folder / "start", scores(N, -1.0, 1), **given)


def evaluated(run: Path, reward: float, second: float, kl: float, **more: Any) -> Path:
    given = {"policy": f"{run}/final", "second": scores(N, second, 4), "kl": kl} | more
    write_evaluation(run / "evaluation", scores(N, reward, 3), **given)
    return run


class Page(HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.cells: list[list[str]] = []
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("th", "td"):
            self.cells[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._cell:
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def row(self, name: str) -> list[str]:
        return next(row for row in self.cells if row and row[0].startswith(name))[1:]


def test_gains_are_paired_over_prompts_and_judged_by_the_held_out_reward(
    tmp_path: Path, compare: Compare
) -> None:
    runs = [
        start(tmp_path),
        evaluated(write_aligned(tmp_path / "dpo"), 0.0, -0.2, 2.0),
        evaluated(write_aligned(tmp_path / "sft", "sft"), -1.0, -1.0, 0.5),
        evaluated(write_reinforced(tmp_path / "rft", "rft"), 0.5, -1.0, 2.5),
        evaluated(write_reinforced(tmp_path / "ppo"), 1.0, -1.6, 5.0),
    ]
    found = as_json(compare, *runs)
    (group,) = found["groups"]
    assert (found["comparable"], group["start"]) == (True, "start")
    said = by_name(group)
    assert {name: run["held_out_says"] for name, run in said.items()} == {
        "start": None, "dpo": "confirmed", "sft": "no gain", "rft": "unconfirmed", "ppo": "gamed",
    }  # fmt: skip
    means = {
        mean: {i: float(np.mean(row)) for i, row in enumerate(scores(N, mean, seed))}
        for mean, seed in ((-1.0, 1), (1.0, 3))
    }
    gain = paired(means[-1.0], means[1.0])
    assert said["ppo"]["gains"]["reward"] == pytest.approx(gain.as_dict())
    spread = estimate([means[1.0][i] for i in range(N)])
    assert spread.se is not None
    assert gain.se is not None
    assert gain.se < spread.se / 2  # what pairing is for
    assert said["ppo"]["gain_per_kl"] == pytest.approx(gain.mean / 5.0)
    assert said["start"]["gains"] == {}
    assert any(text.startswith("ppo has the highest reward") for text in group["found"])
    assert any(text.startswith("dpo has the highest held-out reward") for text in group["found"])
    assert any("ppo: the reward rose" in text and "gaming" in text for text in group["found"])


def test_one_table_holds_every_measure(tmp_path: Path, compare: Compare) -> None:
    wins = {"against": "start", "reward": estimate([0.5, 0.75] * 12).as_dict()}
    runs = [
        start(tmp_path),
        evaluated(write_aligned(tmp_path / "dpo"), 0.0, -0.2, 2.0, win_rate=wins),
        write_aligned(tmp_path / "sft", "sft"),
    ]
    report = tmp_path / "report.html"
    code, out, _ = compare(*runs, "-o", report)
    assert code == 0
    page = Page(report)
    assert page.row("recipe") == ["the start", "DPO", "SFT"]
    assert page.row("base policy")[1:] == [START, START]
    assert page.row("data")[1:] == ["pairs.jsonl", "pairs.jsonl"]
    assert page.row("seed") == ["–", "3", "3"]
    assert page.row("minutes") == ["–", "2.0", "2.0"]
    before, after = (
        estimate([float(np.mean(row)) for row in scores(N, mean, seed)])
        for mean, seed in ((-1.0, 1), (0.0, 3))
    )
    for name, cells in (("reward before", (1,)), ("rewardmean", (0,))):
        for cell in cells:
            assert page.row(name)[cell].startswith(f"{before.mean:+.2f}".replace("-", "−"))
    assert after.low is not None
    assert f"{after.low:+.2f} to {after.high:+.2f}".replace("-", "−") in page.row("rewardmean")[1]
    assert page.row("win rate")[1].startswith("62%")
    assert page.row("KL")[1].startswith("2.00")
    assert page.row("finished")[1].startswith("75%")
    assert page.row("distinct-2") == ["0.83", "0.83", "–"]
    assert page.row("refusals")[1].startswith("25%")
    assert page.row("implied accuracy") == ["–", "75%66 to 82", "–"]
    assert page.row("−log-likelihood") == ["–", "2.252.50 before", "2.002.50 before"]
    assert page.row("rewardmean")[2] == "–"
    assert "Not measured on prompts: sft." in page.text
    assert "Not measured on prompts: sft." in out
    subgroups = [row for row in page.cells if row[:1] == ["fact12 prompts"]]
    by_rows = [
        estimate([float(np.mean(r)) for r in scores(N, mean, seed)[::2]]).mean
        for mean, seed in ((-1.0, 1), (0.0, 3))
    ]
    assert [cell.replace("−", "-")[:5] for cell in subgroups[0][1:]] == [
        f"{mean:+.2f}" for mean in by_rows
    ]
    assert {"Question 0?", "An answer. 0.0"} <= {text.strip() for text in page.texts}


def test_the_report_stands_on_its_own_and_runs_nothing_of_a_run(
    tmp_path: Path, compare: Compare
) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u202e\x00$\\frac{"
    name = "<b onclick=alert(3)>$\\frac{x"
    run = evaluated(
        write_reinforced(tmp_path / name, warnings=[evil]),
        1.0,
        1.0,
        2.0,
        response=evil,
        subgroups={evil: {evil: {"reward": estimate([1.0, 2.0]).as_dict()}}},
        prompts={"source": evil, "sha256": "a" * 64, "count": N},
    )
    first = start(tmp_path, response=evil, prompts={"source": evil, "sha256": "a" * 64, "count": N})
    report = tmp_path / "report.html"
    code, out, _ = compare(run, first, "-o", report)
    assert code == 0
    page = Page(report)
    kinds = {tag for tag, _ in page.tags}
    assert {"svg", "table", "style", "figure"} <= kinds
    assert not kinds & {"script", "img", "link", "iframe", "object", "b onclick"}
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#"), (tag, attributes)
    text = report.read_text(encoding="utf-8")
    assert not [word for word in ("@import", "url(http", "\x00") if word in text]
    assert "<script>alert(1)</script>" in page.text  # to be read
    assert name in page.text
    assert "<script>" in out
    assert page.text.count("prefers-color-scheme: dark") == 1


def test_runs_on_other_terms_are_kept_apart(tmp_path: Path, compare: Compare) -> None:
    alike = [evaluated(write_aligned(tmp_path / n), 0.0, 0.0, 1.0) for n in ("a", "b")]
    alike_prompts = {"source": "held-out.jsonl", "sha256": "a" * 64, "count": N}
    others = {
        "prompts": {"prompts": {"source": "x.jsonl", "sha256": "b" * 64, "count": N}},
        "columns": {"prompts": alike_prompts | {"answer_key": "solution"}},
        "rewards": {"rewards": ["0.5*proxy"]},
        "revision": {"revisions": {"rewards": {"proxy": "r2"}}},
        "tokens": {"max_tokens": 99},
        "heat": {"temperature": 0.5},
        "reference": {"reference": "other"},
    }
    words = {
        "columns": f"other prompts ({N} of held-out.jsonl, columns prompt and solution)",
        "prompts": f"other prompts ({N} of x.jsonl)", "rewards": "other rewards (0.5·proxy)",
        "revision": "other revisions of the reward models", "tokens": "99 tokens at most, not 48",
        "heat": "temperature 0.5, not 1", "reference": "KL against another policy (other)",
    }  # fmt: skip
    for name, change in others.items():
        run = evaluated(write_aligned(tmp_path / name), 0.0, 0.0, 1.0, **change)
        found = as_json(compare, run, *alike)
        assert found["comparable"] is False
        sentence = f"{name} is not comparable with the others: {words[name]}."
        assert found["not_comparable"] == [sentence]
        assert [list(by_name(group)) for group in found["groups"]] == [["a", "b"], [name]]
    report = tmp_path / "report.html"
    code, out, _ = compare(*alike, run, "-o", report)
    assert code == 0
    page = Page(report)
    assert sentence in out
    assert sentence in page.text
    assert page.text.count("Side by side") == 2


def test_two_splits_of_a_data_set_are_not_one(tmp_path: Path, compare: Compare) -> None:
    runs = [
        write_reinforced(tmp_path / name, settings={"eval_prompts": "openai/gsm8k"} | of)
        for name, of in (("a", {}), ("b", {"eval_prompts_split": "train"}))
    ]
    found = as_json(compare, *runs)
    assert found["comparable"] is False
    assert "other prompts (2 of openai/gsm8k, split train)" in found["not_comparable"][0]


def test_held_out_rewards_of_two_models_are_not_one(tmp_path: Path, compare: Compare) -> None:
    first = evaluated(write_aligned(tmp_path / "a"), 0.0, 0.0, 1.0, heldout="one")
    second = evaluated(write_aligned(tmp_path / "b"), 0.0, 0.0, 1.0, heldout="two")
    third = write_aligned(tmp_path / "c")
    write_evaluation(third / "evaluation", scores(N, 0.0, 5), kl=1.0)
    found = as_json(compare, first, second, third)
    assert [list(by_name(group)) for group in found["groups"]] == [["a", "c"], ["b"]]
    assert "another held-out reward (two)" in found["not_comparable"][0]


def curve() -> list[dict[str, float]]:
    rows: list[dict[str, float]] = [{"step": 1, "seconds": 2.0, "reward": 0.0}]
    for step in (0, 6, 12):
        rows.append(
            {
                "step": step,
                "seconds": 1.0,
                "eval/reward": step / 12,
                "eval/kl": step / 6,
                "eval/heldout_reward": -step / 12,
            }
        )
    return rows


def test_a_run_without_an_evaluation_is_shown_by_what_it_measured(
    tmp_path: Path, compare: Compare
) -> None:
    run = write_reinforced(tmp_path / "ppo", curve=curve())
    (group,) = as_json(compare, run)["groups"]
    (found,) = group["runs"]
    assert group["terms"]["own"] is True
    assert found["measures"]["reward"]["mean"] == pytest.approx(1.0)
    assert found["gains"]["reward"]["mean"] == pytest.approx(1.0)
    assert [(p["step"], p["reward"], p["kl"]) for p in found["curve"]] == [
        (0, 0.0, 0.0), (6, 0.5, 1.0), (12, 1.0, 2.0),
    ]  # fmt: skip
    evaluation = start(tmp_path)
    both = as_json(compare, run, evaluation)
    assert len(both["groups"]) == 2
    assert "measured by guerdon eval policy, on samples of its own" in both["not_comparable"][0]
    assert "KL against" not in both["not_comparable"][0]


def test_a_curve_is_drawn_only_where_its_terms_are_those_of_the_evaluations(
    tmp_path: Path, compare: Compare
) -> None:
    first = start(tmp_path, second=None)
    same = {"eval_prompts": "held-out.jsonl", "heldout_reward": ["h:1/unknown"]}
    summary = json.loads(
        (write_reinforced(tmp_path / "x") / "summary.json").read_text(encoding="utf-8")
    )
    for part in ("before", "after"):
        summary[part]["reward"]["n"] = N
    counts = {part: summary[part] for part in ("before", "after")}
    for name, settings, drawn in (
        ("same", same, 3),
        ("hot", same | {"temperature": 2.0}, 0),
        ("other", same | {"eval_prompts": "x.jsonl"}, 0),
        ("model", same | {"reward": ["h:1/another"]}, 0),
    ):
        run = write_reinforced(tmp_path / name, curve=curve(), settings=settings, **counts)
        write_evaluation(run / "evaluation", scores(N, 0.5, 3), kl=2.0)
        (group,) = as_json(compare, first, run)["groups"]
        assert len(by_name(group)[name]["curve"]) == drawn, name
        apart = [text for text in group["notes"] if "are not drawn" in text]
        assert len(apart) == (drawn == 0)
        assert all(point["heldout"] is None for point in by_name(group)[name]["curve"])


def broken(path: Path, **changes: Any) -> Path:
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(values), encoding="utf-8")
    return path.parent


def _not_there(tmp: Path) -> tuple[Path, str]:
    return tmp / "nowhere", "nowhere is not there"


def _file(tmp: Path) -> tuple[Path, str]:
    (tmp / "file").touch()
    return tmp / "file", "file is a file: give a folder"


def _empty(tmp: Path) -> tuple[Path, str]:
    (tmp / "empty").mkdir()
    return tmp / "empty", "empty is neither a run of guerdon train nor"


def _reward_model(tmp: Path) -> tuple[Path, str]:
    run = write_aligned(tmp / "rm")
    (run / "guerdon.json").write_text("{}")
    return run, "rm is a reward model, not a run that trained a policy"


def _unfinished(tmp: Path) -> tuple[Path, str]:
    run = write_aligned(tmp / "run")
    (run / "summary.json").unlink()
    return run, "run has no summary.json: the run hasn't ended"


def _unfinished_evaluation(tmp: Path) -> tuple[Path, str]:
    run = write_aligned(tmp / "run")
    (run / "evaluation").mkdir()
    return run, "evaluation has no evaluation.json: the evaluation hasn't ended"


def _unfinished_start(tmp: Path) -> tuple[Path, str]:
    folder = start(tmp)
    (folder / "evaluation.json").unlink()
    return folder, "start has samples.jsonl and no evaluation.json"


def _format(tmp: Path) -> tuple[Path, str]:
    return broken(start(tmp) / "evaluation.json", format=2), "has format 2, not 1"


def _json(tmp: Path) -> tuple[Path, str]:
    run = write_aligned(tmp / "run")
    (run / "summary.json").write_bytes(b'{"algorithm": "dpo", \xff')
    return run, "summary.json can't be read"


def _toml(tmp: Path) -> tuple[Path, str]:
    run = write_aligned(tmp / "run")
    (run / "config.toml").write_text("train = ")
    return run, "config.toml can't be read"


def _infinite(tmp: Path) -> tuple[Path, str]:
    measures = {"reward": {"mean": float("nan"), "se": 1.0, "low": 0, "high": 1, "n": 2}}
    return broken(start(tmp) / "evaluation.json", measures=measures), (
        "measures.reward.mean is nan, not a finite number"
    )


def _no_reward(tmp: Path) -> tuple[Path, str]:
    return broken(start(tmp) / "evaluation.json", measures={}), "measures.reward is missing"


def _row(tmp: Path) -> tuple[Path, str]:
    folder = start(tmp)
    rows = read_rows(folder / "samples.jsonl")
    write_rows(folder / "samples.jsonl", [rows[0], rows[1] | {"reward": "high"}])
    return folder, "samples.jsonl: line 2: reward is 'high', not a number"


def _cut_row(tmp: Path) -> tuple[Path, str]:
    folder = start(tmp)
    text = (folder / "samples.jsonl").read_text(encoding="utf-8")
    (folder / "samples.jsonl").write_text(text[:-20], encoding="utf-8")
    return folder, f"samples.jsonl, line {2 * N}"


def _with_weights(tmp: Path, seconds: float, **more: Any) -> Path:
    run = evaluated(write_reinforced(tmp / "run"), 0.0, 0.0, 1.0, policy_sha256="0" * 64, **more)
    (run / "final").mkdir()
    weights = run / "final" / "model.safetensors"
    weights.write_bytes(b"x")
    os.utime(weights, (seconds, seconds))
    return run


def _other_weights(tmp: Path) -> tuple[Path, str]:
    """The run was gone on with since."""
    return _with_weights(tmp, 2e9), "evaluation is of other weights than"


def _other_policy(tmp: Path) -> tuple[Path, str]:
    """What another run made was evaluated."""
    run = _with_weights(tmp, 1e9, policy="runs/other/final")
    return run, "evaluation is of other weights than"


def _missing_rows(tmp: Path) -> tuple[Path, str]:
    folder = start(tmp)
    rows = read_rows(folder / "samples.jsonl")
    write_rows(folder / "samples.jsonl", rows[:-1])
    return folder, f"samples.jsonl has {2 * N - 1} completions of {2 * N}"


@pytest.mark.parametrize(
    "make",
    [
        _not_there,
        _file,
        _empty,
        _reward_model,
        _unfinished,
        _unfinished_evaluation,
        _unfinished_start,
        _format,
        _json,
        _toml,
        _infinite,
        _no_reward,
        _row,
        _cut_row,
        _missing_rows,
        _other_weights,
        _other_policy,
    ],
)
def test_a_folder_that_is_no_whole_run_ends_in_one_sentence(
    make: Callable[[Path], tuple[Path, str]], tmp_path: Path, compare: Compare
) -> None:
    folder, sentence = make(tmp_path)
    good = write_aligned(tmp_path / "good")
    report = tmp_path / "report.html"
    code, out, err = compare(good, folder, "-o", report)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not report.exists()


def test_a_report_replaces_only_a_report(tmp_path: Path, compare: Compare) -> None:
    run = write_aligned(tmp_path / "a")
    report = tmp_path / "deep" / "report.html"
    assert compare(run, "-o", report)[0] == 0
    assert compare(run, "-o", report)[0] == 0
    other = tmp_path / "notes.html"
    other.write_text("mine")
    code, _, err = compare(run, "-o", other)
    assert (code, other.read_text()) == (2, "mine")
    assert "no report of guerdon compare" in err
    assert compare(run, run)[0] == 2
    code, _, err = compare()
    assert code == 2
    assert "RUN" in err


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path, compare: Compare) -> None:
    runs = [write_aligned(tmp_path / seed / "dpo") for seed in ("s0", "s1")]
    (group,) = as_json(compare, *runs)["groups"]
    assert list(by_name(group)) == ["s0/dpo", "s1/dpo"]
    assert group["terms"] is None


def test_an_interval_of_another_level_is_that_of_the_values() -> None:
    values = [0.3, 1.2, -0.4, 0.9, 2.2, 0.1]
    assert at_level(estimate(values), 0.99).as_dict() == pytest.approx(
        estimate(values, 0.99).as_dict()
    )
    assert at_level(estimate([1.0]), 0.99) == estimate([1.0])


@pytest.mark.parametrize("recipe", ["sft", "dpo", "orpo"])
def test_what_a_recipe_leaves_is_read(recipe: str, compare: Compare, tmp_path: Path) -> None:
    """The summary of a real run on files, whatever has been added to it since."""
    policy = tiny_checkpoint(tmp_path / "policy", "llama", causal_lm=True)
    toy = write_toy(tmp_path / "train.jsonl", 8, seed=1), write_toy(tmp_path / "eval.jsonl", 4, 2)
    summary, _ = align_run(settings_of(recipe, policy, toy, tmp_path / "run", seed=7))
    code, out, err = compare(tmp_path / "run", "--json", "--output", tmp_path / "report.html")
    assert code == 0, err
    (run,) = json.loads(out)["groups"][0]["runs"]
    assert (run["recipe"], run["seed"], run["steps"]) == (recipe, 7, summary["steps"])
    if recipe != "sft":
        assert run["implied_accuracy"]["value"] == summary["after"]["implicit_accuracy"]["value"]
