"""What a person sees: progress, the report, plots, trackers."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tests.recipes.support import make_group, settings_of
from tests.recipes.test_measuring import made
from tests.support.metric_keys import describe

from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.measuring.policy_evaluation import evaluate
from guerdon.trainer.common.measuring.samples import SampleTable
from guerdon.trainer.common.trackers import Trackers, check_trackers
from guerdon.trainer.rl.folder import RLFolder
from guerdon.trainer.rl.report.plots import FIGURES, PHASES, draw_plots
from guerdon.trainer.rl.report.progress import SHOWN, RunProgress
from guerdon.trainer.rl.report.summary import make_summary, show_summary

ROW = {
    "step": 3, "reward": 0.5123, "kl": 1.234, "loss": -0.01, "entropy": 1.5, "length": 40.0,
    "clip_fraction": 0.021, "tokens_per_second": 312.7, "staleness": 1.0, "mismatch_kl": 0.00042,
    "ess": 0.991, "finished": 0.75,
}  # fmt: skip


def console(*, terminal: bool = False, quiet: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    made_of = Console(file=text, width=120, force_terminal=terminal, quiet=quiet)
    return made_of, text


def folder_of(path: Path, **more: Any) -> RLFolder:
    folder = RLFolder(settings_of(output=str(path), **more))
    folder.begin()
    return folder


# --- progress ---


def test_a_line_for_each_step() -> None:
    shown_on, text = console()
    with RunProgress(shown_on, steps=20) as shown:
        shown.phase("sampling")
        shown.add(ROW)
        shown.add(made(10, 0.5, 0.2).metrics())
        shown.note("the sampler [was] away for 3 seconds")
    first, second, third = text.getvalue().splitlines()
    assert first == (
        "step 3/20: reward +0.512, KL 1.23, loss -0.0100, entropy 1.50, clipped 2.1%, "
        "length 40.0, finished 75%, stale 1.00, mismatch KL 4.2e-04, ESS 0.991, tokens/s 313"
    )
    assert second.startswith("step 10: held-out reward +0.4")
    assert "(standard error)" in second
    assert "other reward model +0." in second
    assert third == "the sampler [was] away for 3 seconds"


def test_a_live_table_on_a_terminal() -> None:
    shown_on, text = console(terminal=True)

    def interrupted() -> None:
        with RunProgress(shown_on, steps=20, done=2) as shown:
            shown.phase("learning")
            shown.add(ROW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    printed = text.getvalue()
    for word in ("3/20", "learning", "mismatch KL", "4.2e-04", "tokens/s", "313"):
        assert word in printed, word
    assert printed.rindex("\x1b[?25h") > printed.rindex("\x1b[?25l")  # the cursor is back


def test_other_processes_say_nothing() -> None:
    shown_on, text = console(quiet=True)
    with RunProgress(shown_on, steps=20) as shown:
        shown.add(ROW)
        shown.note("x")
    assert text.getvalue() == ""


# --- report ---


def summary_of(folder: RLFolder, after: float) -> dict[str, Any]:
    history = [made(0, 0.0, 0.5), made(10, after / 2, 0.5), made(20, after, 0.5)]
    rows = [{"step": i, "reward": 0.0, "tokens": 100, "completions": 8} for i in range(1, 21)]
    return make_summary(
        settings_of(output=str(folder.path)),
        rows=[*rows, history[2].metrics()],
        evaluations=history,
        seconds={"learn": 12.345, "sample": 0.1},
        faults={"sampler": 2, "reward": 0},
        warnings=["step 20: something is odd"],
    )


def test_the_summary_holds_what_the_contract_asks_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.write_summary(summary_of(folder, 1.0))
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["before"]["reward"].keys() == {"mean", "se", "low", "high", "n"}
    assert found["difference"]["reward"]["low"] > 0
    assert found["reward_rose"]
    assert (found["steps"], found["tokens"], found["completions"]) == (20, 2000, 160)
    assert found["seconds"] == {"learn": 12.35, "sample": 0.1}
    assert found["faults"] == {"sampler": 2, "reward": 0}
    assert [row["step"] for row in found["evaluations"]] == [0, 10, 20]
    assert found["versions"].keys() >= {"guerdon", "torch", "transformers"}


def test_what_did_not_rise_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert not summary_of(folder, 0.0)["reward_rose"]
    shown_on, text = console()
    show_summary(summary_of(folder, 0.0), folder, shown_on)
    assert "did not rise beyond its noise" in text.getvalue()


def test_the_report_shows_before_and_after(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    table = SampleTable(folder.samples, 1)
    table.add(
        0, [make_group(i, [0.1], text="[bold]markup[/x] is text") for i in range(9)], "before"
    )
    table.add(9, [make_group(i, [0.9], text="much better") for i in range(9)], "after")
    shown_on, text = console()
    show_summary(summary_of(folder, 1.0), folder, shown_on)
    printed = text.getvalue()
    assert "[bold]markup[/x] is text 0" in printed
    assert "much better 0" in printed
    assert "+0.900" in printed
    assert printed.count("much better") == 4  # not all of them
    for word in ("faults survived: sampler 2", "something is odd", f"policy: {folder.final}"):
        assert word in printed, word
    assert "did not rise" not in printed


def test_a_single_prompt_has_no_interval(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    one = [evaluate(step, [make_group(0, [1.0, 2.0])]) for step in (0, 1)]
    found = make_summary(settings_of(), rows=[], evaluations=one, seconds={}, faults={})
    shown_on, text = console()
    show_summary(found, folder, shown_on)
    assert "1.500" in text.getvalue()
    json.dumps(found, allow_nan=False)


# --- plots ---


def write_rows(folder: RLFolder, rows: list[dict[str, float]]) -> None:
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def whole_rows(steps: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    keys = [key for panels in FIGURES.values() for panel in panels for key in panel.lines]
    keys += ["reward_se", *(f"seconds/{name}" for name in PHASES), "idle/sampler", "idle/learner"]
    rows = [{"step": i, **{key: abs(rng.normal()) for key in keys}} for i in range(1, steps + 1)]
    return [made(0, 0.0, 0.5).metrics(), *rows, made(steps, 1.0, 0.5).metrics()]


def inked(path: Path) -> float:
    """Share of a picture's points that are not white."""
    with Image.open(path) as picture:
        return float((np.asarray(picture.convert("L")) < 250).mean())


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_all_pictures(steps: int, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_rows(folder, whole_rows(steps))
    found = draw_plots(folder)
    assert {path.stem for path in found} == {*FIGURES, "time"}
    assert {path.name for path in folder.plots.iterdir()} == {path.name for path in found}
    assert all(inked(path) > 0.01 for path in found)


def test_only_what_there_is_data_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_rows(folder, [made(0, 0.0).metrics(), {"step": 1, "loss": 0.5}, made(1, 0.5).metrics()])
    assert {path.stem for path in draw_plots(folder)} == {"reward", "completions", "learning"}
    folder.metrics.unlink()
    assert draw_plots(folder) == []


def test_what_is_drawn_and_shown_is_documented() -> None:
    panels = [panel for figure in FIGURES.values() for panel in figure]
    keys = [key for panel in panels for key in (*panel.lines, *panel.held_out)]
    assert all(describe(key) for key in [*keys, *(key for key, _, _ in SHOWN)])


# --- trackers ---


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = settings_of(output=str(tmp_path), tracker=("tensorboard",))
    for done, steps in ((0, (1, 2, 3)), (2, (3,))):  # resumed after step 2
        begun = int(time.time())
        while done and int(time.time()) == begun:  # TensorBoard orders its files by the second
            time.sleep(0.01)
        trackers = Trackers(settings, tmp_path, done=done)
        for step in steps:
            trackers.log({"step": step, "reward": step + done / 10, "eval/kl": 2})
        trackers.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"reward", "eval/kl"} <= set(events.Tags()["scalars"])
    found = [(event.step, event.value) for event in events.Scalars("reward")]
    assert found == [(1, 1.0), (2, 2.0), (3, pytest.approx(3.2))]


def test_other_processes_track_nothing(tmp_path: Path) -> None:
    settings = settings_of(output=str(tmp_path), tracker=("tensorboard",))
    trackers = Trackers(settings, tmp_path, main=False)
    trackers.log({"step": 1, "reward": 0.5})
    trackers.finish()
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guerdon.trainer.common.trackers.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="tracker wandb is not installed: pip install wandb"):
        check_trackers(("wandb",))
    with pytest.raises(SettingsError, match="tracker is 'comet', not tensorboard or wandb"):
        check_trackers(("comet",))
