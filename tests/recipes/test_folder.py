"""The folder of a run: what may be there before, and what appears in the end."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.recipes.support import make_group, settings_of
from tests.support.command import read_rows

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.common.measuring.samples import SampleTable
from guerdon.trainer.common.metrics_log import MetricsLog
from guerdon.trainer.rl.folder import RLFolder


def folder_of(
    path: Path, *, resume: bool = False, overwrite: bool = False, **more: Any
) -> RLFolder:
    return RLFolder(settings_of(output=str(path), **more), resume=resume, overwrite=overwrite)


def write_policy(part: Path) -> None:
    (part / "model.safetensors").write_text("weights")
    (part / "config.json").write_text("{}")


def finish(folder: RLFolder, steps: int) -> None:
    folder.publish_final(write_policy)
    folder.write_summary({"steps": steps})


def test_looking_writes_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    assert not folder.finished
    assert not (tmp_path / "run").exists()
    folder.begin()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.toml"]


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    folder_of(tmp_path).begin()
    with pytest.raises(OutputError, match="is not empty: --resume goes on with it"):
        folder_of(tmp_path)
    with pytest.raises(OutputError, match="exclude each other"):
        folder_of(tmp_path, resume=True, overwrite=True)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="is not a run of ours"):
        folder_of(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="nothing to resume"):
        folder_of(tmp_path, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        folder_of(tmp_path / "file")


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.begin()
    finish(folder, 20)
    folder.checkpoints.mkdir()
    again = folder_of(tmp_path, overwrite=True, lr=1e-3)
    assert not again.finished
    again.begin()
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]
    assert "lr = 0.001" in (tmp_path / "config.toml").read_text()


@pytest.mark.parametrize(
    "more",
    [
        {"steps": 30},
        {"sampler": "elsewhere:9"},
        {"reward": ("2.5*elsewhere:9/helpful@3",)},
        {"patience": 5.0, "tracker": ("tensorboard",), "checkpoint_every": 1},
    ],
)
def test_a_resumed_run_may_find_its_services_elsewhere(
    more: dict[str, Any], tmp_path: Path
) -> None:
    first = {"reward": ("2.5*a:1/helpful@3",)}
    folder_of(tmp_path, **first).begin()
    folder_of(tmp_path, resume=True, **{**first, **more}).begin()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lr": 1e-3}, "was begun with lr = None, not 0.001: resume with the same settings"),
        ({"seed": 1}, "was begun with seed = 0, not 1"),
        ({"steps": 19}, "was begun with steps = 20, and they can only grow"),
        ({"reward": ("a:1/other",)}, "not other models"),
        ({"reward": ("2*localhost:2/helpful",)}, "not other models"),
        ({"heldout_reward": ("a:1/x",)}, "was begun with heldout_reward = []"),
        ({"verifier": ("exact",)}, "was begun with verifier = []"),
    ],
)
def test_a_resumed_run_is_the_same_run(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder_of(tmp_path).begin()
    with pytest.raises(OutputError) as caught:
        folder_of(tmp_path, resume=True, **more)
    assert message in str(caught.value)


def test_settings_that_came_later_have_their_defaults(tmp_path: Path) -> None:
    folder_of(tmp_path).begin()
    config = tmp_path / "config.toml"
    text = config.read_text()
    older = [line for line in text.splitlines() if not line.startswith(("prompt_key", "verifier"))]
    config.write_text("\n".join(older) + "\n")
    folder_of(tmp_path, resume=True)
    for more in ({"prompt_key": "question"}, {"verifier": ("exact",)}):
        with pytest.raises(OutputError, match="was begun with"):
            folder_of(tmp_path, resume=True, **more)


def test_finished_means_all_steps(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.begin()
    folder.publish_final(write_policy)
    assert not folder.finished  # killed before the summary
    folder.write_summary({"steps": 20})
    assert folder.finished
    assert folder_of(tmp_path, resume=True).finished
    assert not folder_of(tmp_path, resume=True, steps=40).finished
    other = RLFolder(settings_of(output=str(tmp_path)), resume=True, main=False)
    assert other.finished  # every process of a launcher's comes to the same end


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    other = RLFolder(settings_of(output=str(tmp_path / "run")), main=False)
    other.begin()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # the main process was faster
    (tmp_path / "run" / "config.toml").write_text("")
    RLFolder(settings_of(output=str(tmp_path / "run")), main=False)


def test_final_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.begin()

    def killed(part: Path) -> None:
        (part / "model.safetensors").write_text("half of the wei")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.publish_final(killed)
    assert not folder.final.exists()
    finish(folder, 20)
    assert {p.name for p in folder.final.iterdir()} == {"model.safetensors", "config.json"}
    with pytest.raises(KeyboardInterrupt):
        folder.publish_final(killed)
    assert (folder.final / "model.safetensors").read_text() == "weights"
    finish(folder, 20)  # over the old one
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_final_has_the_modes_that_the_umask_grants(tmp_path: Path) -> None:
    """safetensors writes files of mode 0600, which a server of another user can't read."""
    folder = folder_of(tmp_path)
    folder.begin()
    before = os.umask(0o027)
    try:
        folder.publish_final(lambda part: save_file({"w": torch.zeros(1)}, part / "w.safetensors"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder.final / "w.safetensors").stat().st_mode) == 0o640
    assert [path.name for path in folder.final.iterdir()] == ["w.safetensors"]


def test_rewinding_forgets_what_came_after(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.begin()
    assert folder.rewind(0) == []
    log, table = MetricsLog(folder.metrics, []), SampleTable(folder.samples, 1)
    for step in range(1, 6):
        log.add({"step": step, "reward": float(step)})
        table.add(step, [make_group(step, [1.0], text="naïve\u2028")])
    with folder.metrics.open("a") as handle:
        handle.write('{"step": 6, "rew')  # killed here
    kept = folder.rewind(3)
    assert [row["step"] for row in kept] == [1, 2, 3]
    assert [row["step"] for row in read_rows(folder.metrics)] == [1, 2, 3]
    lines = folder.samples.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["step"] for line in lines if line] == [1, 2, 3]
    assert "naïve\u2028" in lines[0]
