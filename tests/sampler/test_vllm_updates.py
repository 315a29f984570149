"""New weights in vLLM: taken whole, refused whole, and the log-probabilities prove which."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from guerdon.sampler.types import PublishOrder, TensorSpec
from guerdon.serving.errors import Interrupted, InvalidRequest, UpdateRefused

pytest.importorskip("vllm")
from tests.support.engine import checksum, drawn, specs_of

if TYPE_CHECKING:
    from tests.support.engine import Served

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

EMBEDDINGS = "model.embed_tokens.weight"


async def test_an_update_changes_every_tensor_also_the_tied_output_layer(served: Served) -> None:
    """vLLM 0.32 on a CPU by itself keeps the old output layer's packed weights."""
    new = drawn(served.tensors, seed=1)
    assert "lm_head.weight" not in new
    answer = await served.publish(new)
    assert answer.canary_tokens == 3 * 23
    assert answer.canary_max_difference < 1e-4
    assert served.engine.version in served.history
    served.check(await served.draw(n=4, max_tokens=32, ignore_eos=True), most=1e-4)


async def test_only_the_embeddings_can_change(served: Served) -> None:
    new = {**served.tensors, EMBEDDINGS: served.tensors[EMBEDDINGS] * 1.3}
    await served.publish(new)
    served.check(await served.draw(n=4, max_tokens=32, ignore_eos=True), most=1e-4)


async def test_the_tied_output_layer_is_new_where_no_canary_would_tell(served: Served) -> None:
    """Without canaries nothing but the weights themselves can be right or wrong."""
    old = served.tensors
    new = {**old, EMBEDDINGS: drawn(old, seed=12)[EMBEDDINGS]}
    version = served.engine.version + 1
    staging, staged = await served.stage(new)
    unproven = PublishOrder(version=version, reset=False, canaries=(), mean_tolerance=0.0)
    assert (await served.engine.publish(staged, unproven)).canary_tokens == 0
    staging.close()
    served.tensors = served.history[version] = new
    await served.check_serving(version)
    # What the old output layer would give is far away, so the check above can fail.
    served.history[version] = old
    with pytest.raises(AssertionError):
        await served.check_serving(version)


async def test_files_are_copied_before_they_serve(served: Served, tmp_path: Path) -> None:
    new = drawn(served.tensors, seed=2)
    names = sorted(new)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({name: new[name] for name in names[:5]}, paths[0])
    save_file({name: new[name] for name in names[5:]}, paths[1])
    version = served.engine.version + 1
    staging = await served.engine.stage_files(paths, ())
    staged = await staging.finish(checksum({name: new[name] for name in names}))
    for path in paths:
        path.write_bytes(b"the trainer has replaced it")
    await served.engine.publish(staged, served.update(new, version))
    staging.close()
    served.tensors = served.history[version] = new
    await served.check_serving(version)


def _faulty(served: Served, fault: str) -> tuple[dict[str, Any], str]:
    new = drawn(served.tensors, seed=3)
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        new.pop(name)
    elif fault == "unknown":
        new["model.extra.weight"] = torch.zeros(3)
        name = "model.extra.weight"
    elif fault == "tied":  # the embeddings' own, which may come under its name too
        name = "lm_head.weight"
        new[name] = new[EMBEDDINGS][:-1].clone()
    elif fault == "shape":
        new[name] = new[name].T.contiguous()
    elif fault == "dtype":
        new[name] = new[name].to(torch.bfloat16)
    elif fault in ("nan", "inf"):
        new[name][3, 4] = math.nan if fault == "nan" else -math.inf
    return new, name


async def _stage_file(served: Served, path: Path, tensors: dict[str, Any]) -> None:
    staging = await served.engine.stage_files([path], specs_of(tensors))
    try:
        await staging.finish(checksum(tensors))
    finally:
        staging.close()


@pytest.mark.parametrize("fault", ["missing", "unknown", "tied", "shape", "dtype", "nan", "inf"])
async def test_wrong_tensors_are_refused_by_name(
    served: Served, tmp_path: Path, fault: str
) -> None:
    new, name = _faulty(served, fault)
    version = served.engine.version
    with pytest.raises(UpdateRefused, match=name):
        await served.publish(new)
    path = tmp_path / "new.safetensors"
    save_file(new, path)
    with pytest.raises(UpdateRefused, match=name):
        await _stage_file(served, path, new)
    await served.check_serving(version)


async def test_a_wrong_checksum_and_missing_bytes_are_refused(served: Served) -> None:
    version = served.engine.version
    new = drawn(served.tensors, seed=4)
    with pytest.raises(UpdateRefused, match="checksum"):
        await served.stage(new, sha256=bytes(32))
    staging = await served.engine.stage_stream(specs_of(new))
    first = specs_of(new)[0].name
    with pytest.raises(UpdateRefused, match=first):
        await staging.finish(bytes(32))
    with pytest.raises(InvalidRequest, match="offset"):
        await staging.write(0, 4, bytes(4))
    staging.close()
    staging.close()
    await served.check_serving(version)


async def test_a_file_that_is_none_is_refused(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(UpdateRefused, match=r"x\.safetensors"):
        await served.engine.stage_files([path], ())
    await served.check_serving(served.engine.version)


async def test_too_much_for_the_memory_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = served.engine._shape
    assert shape is not None
    monkeypatch.setattr(shape, "check", lambda _specs: None)
    with pytest.raises(UpdateRefused, match="room"):
        await served.engine.stage_stream((TensorSpec("x", "float32", (1 << 24, 1 << 24)),))


async def test_a_wrong_canary_brings_the_old_weights_back(served: Served) -> None:
    version, old = served.engine.version, served.tensors
    sha256 = served.engine.sha256
    new = drawn(old, seed=5)
    with pytest.raises(UpdateRefused, match="canaries"):
        await served.publish(new, believed=old)
    assert served.tensors is old
    assert served.engine.sha256 == sha256
    await served.check_serving(version)
    # The same version, right this time.
    await served.publish(new)
    await served.check_serving(version + 1)


async def test_an_update_in_flight_recomputes_the_keys_and_values(served: Served) -> None:
    version = served.engine.version
    drawing = asyncio.create_task(served.draw(n=8, max_tokens=800, ignore_eos=True))
    await served.until_drawing(8)
    await served.publish(drawn(served.tensors, seed=6))
    completions = await drawing
    for completion in completions:
        assert [span.version for span in completion.spans] == [version, version + 1]
        assert len(completion.token_ids) == 800
    served.check(completions)


async def test_no_token_of_refused_weights_is_ever_handed_out(served: Served) -> None:
    version, old = served.engine.version, served.tensors
    drawing = asyncio.create_task(served.draw(n=8, max_tokens=500, ignore_eos=True))
    short = asyncio.create_task(_draw_on(served, drawing))
    await served.until_drawing(9)
    with pytest.raises(UpdateRefused):
        await served.publish(drawn(old, seed=7), believed=old)
    completions = [*await drawing, *await short]
    assert len(completions) > 20
    assert {s.version for c in completions for s in c.spans} == {version}
    served.check(completions)


async def _draw_on(served: Served, until: asyncio.Task[Any]) -> list[Any]:
    """Short completions, one after the other."""
    found: list[Any] = []
    while not until.done():
        found += await served.draw(max_tokens=4, ignore_eos=True)
    return found


async def test_a_reset_interrupts_what_runs(served: Served) -> None:
    drawing = asyncio.create_task(served.draw(n=4, max_tokens=900, ignore_eos=True))
    await served.until_running(4)
    await served.publish(drawn(served.tensors, seed=8), reset=True, version=1)
    with pytest.raises(Interrupted):
        await drawing
    await served.until_running(0)
    await served.check_serving(1)


async def test_an_error_in_vllms_worker_leaves_the_old_weights(served: Served) -> None:
    version = served.engine.version
    new = drawn(served.tensors, seed=9)
    staging, staged = await served.stage(new)
    whole = staged.path.read_bytes()
    staged.path.write_bytes(whole[: len(whole) // 2])
    drawing = asyncio.create_task(served.draw(n=3, max_tokens=300, ignore_eos=True))
    await served.until_running(3)
    with pytest.raises(UpdateRefused, match="could not load"):
        await served.engine.publish(staged, served.update(new, version + 1))
    staging.close()
    served.check(await drawing)
    await served.check_serving(version)
    await served.publish(new)
    await served.check_serving(version + 1)


async def test_one_staged_file_stays(served: Served) -> None:
    """The one that serves: what a refused update goes back to."""
    area = served.engine._area
    assert area is not None
    await served.publish(drawn(served.tensors, seed=10))
    await served.publish(drawn(served.tensors, seed=11))
    assert len([f for folder in area._folders for f in folder.glob("*.safetensors")]) == 1
