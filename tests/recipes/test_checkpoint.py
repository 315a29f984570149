"""Checkpoints are whole or not there, and give back what was saved, to the bit."""

from __future__ import annotations

import io
import json
import math
import pickletools
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.recipes.killed_saves import parts
from tests.recipes.support import make_group

from guerdon.trainer.common.errors import OutputError
from guerdon.trainer.rl.checkpoint import Checkpoints
from guerdon.trainer.rl.rollout.buffer import (
    pack_groups,
    pack_tasks,
    unpack_groups,
    unpack_tasks,
)
from guerdon.trainer.rl.state_files import StateError, read_tree, write_tree

# --- trees ---


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, of the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return (a == b and math.copysign(1, a) == math.copysign(1, b)) or (a != a and b != b)
    return bool(a == b)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


TORCH = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
tensors = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    ).to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(TORCH),
    st.integers(0, 99),
)
arrays = st.builds(
    lambda shape, dtype: np.arange(math.prod(shape)).reshape(shape).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool"]),
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.binary(max_size=8)
    | tensors
    | arrays
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | st.just("$") | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=trees)
def test_trees_come_back_to_the_bit(tree: Any, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    write_tree(tmp_path / "t", tree)
    assert same(read_tree(tmp_path / "t"), tree)


def test_views_of_the_same_memory(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tree = {
        "whole": base,
        "again": base,
        "shaped": base.view(2, 3),
        "turned": base.view(2, 3).t(),
        "part": base[2:],
        "bits": base.view(torch.int32),
        "weight": torch.nn.Parameter(base),
    }
    write_tree(tmp_path / "t", tree)
    found = read_tree(tmp_path / "t")
    for name, tensor in tree.items():
        assert torch.equal(found[name], tensor), name
    size = (tmp_path / "t.safetensors").stat().st_size
    write_tree(tmp_path / "once", {"whole": base, "again": base})
    assert (tmp_path / "once.safetensors").stat().st_size < size - 3 * base.nbytes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [object()]}, "/a/0 is a object"),
        ({"a": {1.5: 1}}, "/a has keys that are neither strings nor integers"),
        (np.float32(1), "NumPy scalar"),
        (np.array(["x"]), "array of <U1"),
        (np.array([None]), "array of object"),
    ],
)
def test_what_can_not_be_written_is_named(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        write_tree(tmp_path / "t", value)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_optimiser_and_random_states_go_on_alike(tmp_path: Path) -> None:
    """A run that is taken up computes what it would have computed."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    generator = np.random.default_rng(5)

    def step() -> None:
        optimiser.zero_grad()
        x = torch.randn(2, 4) + float(generator.normal())
        layer(x).square().sum().backward()
        optimiser.step()

    step()
    state = {
        "layer": layer.state_dict(),
        "optimiser": optimiser.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": generator.bit_generator.state,
    }
    state["layer"] = dict(state["layer"])
    write_tree(tmp_path / "t", state)
    step()
    unbroken = bits(layer.weight.detach())
    found = read_tree(tmp_path / "t")
    layer.load_state_dict(found["layer"])
    optimiser.load_state_dict(found["optimiser"])
    torch.set_rng_state(found["torch"])
    generator.bit_generator.state = found["numpy"]
    step()
    assert bits(layer.weight.detach()) == unbroken


def test_groups_and_tasks_come_back() -> None:
    groups = [
        make_group(5, [1.0, float("nan")], ids=[[1, 2, 3], [4]], helpful=[0.5, 1.5]),
        make_group(6, [-2.0], ids=[[9, 9]]),
    ]
    found = unpack_groups(pack_groups(groups))
    assert unpack_groups(pack_groups([])) == []
    for a, b in zip(found, groups, strict=True):
        assert a.task.uid == b.task.uid
        assert a.task.row == b.task.row
        for x, y in zip(a.samples, b.samples, strict=True):
            for name in ("prompt_ids_P", "response_ids_T", "behaviour_logprobs_T", "versions_T"):
                assert same(getattr(x, name), getattr(y, name)), name
            assert same(
                [x.task_uid, x.index, x.finished, x.text, x.reward, x.parts],
                [y.task_uid, y.index, y.finished, y.text, y.reward, y.parts],
            )
    tasks = [group.task for group in groups]
    assert [t.uid for t in unpack_tasks(pack_tasks(tasks))] == [5, 6]


def test_packed_groups_can_be_written(tmp_path: Path) -> None:
    packed = pack_groups([make_group(1, [1.0, 2.0])])
    write_tree(tmp_path / "t", packed)
    assert same(read_tree(tmp_path / "t"), packed)


# --- checkpoints ---


def step_of(checkpoints: Checkpoints) -> int:
    """The newest whole checkpoint's step, when all of it is that step's."""
    found = checkpoints.latest()
    assert found is not None
    for name, tree in parts(found.step).items():
        assert same(found.load(name), tree), name
    return found.step


def test_save_and_load(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, parts(step))
        assert step_of(checkpoints) == step
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-000010", "step-000015"]
    found = checkpoints.latest()
    assert found is not None
    assert set(found.parts) == set(parts(1))
    with pytest.raises(OutputError, match="has no buffer"):
        found.load("buffer")


def test_the_same_step_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, {"a": 1})
    checkpoints.save(3, {"a": 2})
    found = checkpoints.latest()
    assert found is not None
    assert found.load("a") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003-1"]
    checkpoints.save(3, {"a": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["step-000003-2"]


def test_a_run_that_went_back(tmp_path: Path) -> None:
    """It resumed before a damaged checkpoint, which may not outrank the new ones."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, parts(5))
    checkpoints.save(10, parts(10))
    damage("one bit", tmp_path / "step-000010")
    Checkpoints(tmp_path, keep=1).save(6, parts(6))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000006"]
    assert step_of(checkpoints) == 6


def test_nothing_in_it_can_run_code(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, parts(1))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        with pytest.raises(ValueError):
            pickletools.dis(path.read_bytes(), out=io.StringIO())


def damage(kind: str, folder: Path) -> None:
    weights = folder / "learner.safetensors"
    data = weights.read_bytes()
    match kind:
        case "one bit":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut short":
            weights.write_bytes(data[:-4])
        case "missing part":
            weights.unlink()
        case "missing manifest":
            (folder / "manifest.json").unlink()
        case "half a manifest":
            manifest = folder / "manifest.json"
            manifest.write_text(manifest.read_text()[:40])
        case "another format":
            manifest = folder / "manifest.json"
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
        case "renamed":
            shutil.copytree(folder, folder.with_name("step-000009"))


@pytest.mark.parametrize(
    "kind",
    [
        "one bit",
        "cut short",
        "missing part",
        "missing manifest",
        "half a manifest",
        "another format",
        "renamed",
    ],
)
def test_a_damaged_newest_gives_way_to_the_one_before(kind: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, parts(1))
    checkpoints.save(2, parts(2))
    damage(kind, tmp_path / "step-000002")
    with pytest.warns(UserWarning, match="is damaged and is left out"):
        assert step_of(checkpoints) == (2 if kind == "renamed" else 1)


def test_all_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, parts(1))
    damage("one bit", tmp_path / "step-000001")
    with pytest.warns(UserWarning, match="learner.safetensors is not what was written"):
        assert checkpoints.latest() is None


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, parts(1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("guerdon.trainer.rl.state_files.save_file", full)
    with pytest.raises(OutputError, match=r"can't write a checkpoint to .*No space left"):
        checkpoints.save(2, parts(2))
    assert step_of(checkpoints) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_killed_at_every_write(tmp_path: Path) -> None:
    """kill −9 at each moment of a save: what is there is whole, and the next save works."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.killed_saves", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    count = int(done.stdout)
    assert count >= 10  # folder, two parts, manifest, renames, and the old one's removal
    steps = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a killed save leaves nothing that looks damaged
        for n in range(count):
            checkpoints = Checkpoints(tmp_path / str(n), keep=1)
            steps.append(step_of(checkpoints))
            checkpoints.save(3, parts(3))
            assert step_of(checkpoints) == 3
            assert [p.name for p in (tmp_path / str(n)).iterdir()] == ["step-000003"]
    assert steps == sorted(steps)  # the first one until the rename, the second one from then on
    assert set(steps) == {1, 2}
