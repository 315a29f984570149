"""Published checkpoints that are not what they say, and code that is never run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints.support import edit_json, edit_tensors, load
from tests.published.checkpoints import EXTRA, LLAMA3, PUBLISHED, internlm2
from tests.support.tiny import CHATML

from guerdon.models import Manifest
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.types import ModelKind
from guerdon.serving.errors import CheckpointRefused

HEADS = {
    "qwen_rm": ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"),
    "qwen_prm": ("score.0.weight", "score.2.weight"),
    "inf_orm": ("score.0.weight", "score.2.bias"),
    "armorm": (
        "regression_layer.weight",
        "reward_transform_matrix",
        "gating.logit_scale",
        "gating.layers.0.weight",
        "gating.layers.3.bias",
    ),
    "qrm": ("gating.layers.2.running_var", "gating.layers.9.weight", "regression_layer.weight"),
    "urm": ("score.weight", "weights.fc.0.weight", "weights.fc.4.bias"),
    "internlm2": ("v_head.weight", "model.layers.1.attention.wqkv.weight"),
}


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    spoiled = tensor.clone()
    spoiled.view(-1)[-1] = float("nan")
    return spoiled


@pytest.mark.parametrize("name", HEADS)
def test_tensors_that_are_missing_or_wrong(name: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name](tmp_path / "m")
    sound = load_file(folder / "model.safetensors")
    for key in HEADS[name]:
        for change, reason in (
            (lambda t, key=key: t.pop(key), f"lacks {re.escape(key)}"),
            (
                lambda t, key=key: t.update({key: torch.ones(3, *t[key].shape)}),
                f"{re.escape(key)} has the shape",
            ),
            (
                lambda t, key=key: t.update({f"{key}_other": t.pop(key)}),
                f"lacks {re.escape(key)}",
            ),
        ):
            edit_tensors(folder, lambda t, change=change: (t.clear(), t.update(sound), change(t)))
            with pytest.raises(CheckpointRefused, match=reason):
                inspect_checkpoint(folder)
        edit_tensors(
            folder,
            lambda t, key=key: (t.clear(), t.update(sound), t.update({key: _poison(t[key])})),
        )
        with pytest.raises(CheckpointRefused, match="not finite"):
            load(inspect_checkpoint(folder))


@pytest.mark.parametrize("name", HEADS)
def test_a_tensor_that_the_published_model_does_not_have(name: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name](tmp_path / "m")
    edit_tensors(folder, lambda t: t.update({"extra_head.weight": torch.ones(1)}))
    with pytest.raises(CheckpointRefused, match=r"extra_head\.weight, which .* does not know"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("name", HEADS)
def test_other_code_is_never_taken_for_the_published_one(name: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name](tmp_path / "m")
    trace = tmp_path / "it-ran"
    source = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    for module in ("modeling_own", "modeling_qwen2_rm", "modeling_custom", "modeling_internlm2",
                   "configuration_qwen2_rm", "configuration_internlm2", "modeling",
                   "tokenization_internlm2_fast"):  # fmt: skip
        (folder / f"{module}.py").write_text(source)
    load(inspect_checkpoint(folder))
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.Own"})
    with pytest.raises(CheckpointRefused, match=r"modeling_own\.Own, which is not the published"):
        inspect_checkpoint(folder)
    edit_json(folder / "config.json", auto_map={}, architectures=["OwnReward"])
    with pytest.raises(CheckpointRefused):
        inspect_checkpoint(folder)
    assert not trace.exists()


def test_code_of_a_tokenizer(tmp_path: Path) -> None:
    folder = PUBLISHED["armorm"](tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    with pytest.raises(CheckpointRefused, match=r"own\.Own.*tokenizer_config\.json"):
        inspect_checkpoint(folder)


def test_code_that_is_named_with_its_repository(tmp_path: Path) -> None:
    folder = PUBLISHED["qwen_rm"](tmp_path / "m")
    name = "Qwen/Qwen2.5-Math-RM-72B--modeling_qwen2_rm.Qwen2ForRewardModel"
    edit_json(folder / "config.json", auto_map={"AutoModel": name})
    assert inspect_checkpoint(folder).num_labels == 1


def test_internlm2_without_a_tokenizer_file(tmp_path: Path) -> None:
    folder = internlm2(tmp_path / "m", tokenizer_json=False)
    with pytest.raises(CheckpointRefused, match=r"no tokenizer\.json.*save_pretrained\(folder\)"):
        inspect_checkpoint(folder)


def _without(config: Path, key: str) -> None:
    values = json.loads(config.read_text())
    del values[key]
    config.write_text(json.dumps(values))


def test_configs_that_the_published_models_do_not_have(tmp_path: Path) -> None:
    folder = internlm2(tmp_path / "a")
    edit_json(folder / "config.json", rope_scaling={"type": "yarn", "factor": 2.0})
    with pytest.raises(CheckpointRefused, match="known are the types linear and dynamic"):
        inspect_checkpoint(folder)
    edit_json(folder / "config.json", rope_scaling=None, reward_token_id=10**6)
    with pytest.raises(CheckpointRefused, match="outside the vocabulary"):
        inspect_checkpoint(folder)
    _without(folder / "config.json", "bias")
    with pytest.raises(CheckpointRefused, match="does not say bias"):
        inspect_checkpoint(folder)
    folder = PUBLISHED["armorm"](tmp_path / "b")
    edit_json(folder / "config.json", num_objectives=5)
    with pytest.raises(CheckpointRefused, match="num_objectives is 5"):
        inspect_checkpoint(folder)
    _without(folder / "config.json", "num_objectives")
    with pytest.raises(CheckpointRefused, match="does not say num_objectives"):
        inspect_checkpoint(folder)
    folder = PUBLISHED["urm"](tmp_path / "c")
    edit_json(folder / "config.json", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    with pytest.raises(CheckpointRefused, match="num_labels is 1"):
        inspect_checkpoint(folder)


def test_a_tokenizer_and_a_template_that_a_gate_can_not_read(tmp_path: Path) -> None:
    folder = PUBLISHED["armorm"](tmp_path / "m")
    (folder / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(CheckpointRefused, match="the chat template does not write"):
        Encoder(inspect_checkpoint(folder))
    (folder / "chat_template.jinja").write_text(LLAMA3)
    Encoder(inspect_checkpoint(folder))


@pytest.mark.parametrize(
    ("name", "manifest", "reason"),
    [
        ("qwen_rm", Manifest(kind="attributes", attributes={"a": 1.0}), "attributes can't be"),
        ("qwen_rm", Manifest(kind="process", step_marker=EXTRA), "kind = process can't be given"),
        ("armorm", Manifest(kind="attributes", attributes={"a": 1.0}), "attributes can't be"),
        ("qwen_prm", Manifest(kind="attributes", attributes={"a": 1.0}), "attributes can't be"),
    ],
)
def test_manifests_that_say_something_else(
    name: str, manifest: Manifest, reason: str, tmp_path: Path
) -> None:
    folder = PUBLISHED[name](tmp_path / "m")
    manifest.write(folder)
    with pytest.raises(CheckpointRefused, match=reason):
        inspect_checkpoint(folder)


def test_manifests_that_say_more(tmp_path: Path) -> None:
    folder = PUBLISHED["qwen_prm"](tmp_path / "a")
    Manifest(max_tokens=100).write(folder)
    checkpoint = inspect_checkpoint(folder)
    assert (checkpoint.max_tokens, checkpoint.kind) == (100, ModelKind.PROCESS)
    assert checkpoint.manifest.step_marker == EXTRA
    Manifest(kind="process", step_marker="<step>", step_aggregation="product").write(folder)
    checkpoint = inspect_checkpoint(folder)
    assert checkpoint.manifest.step_marker == "<step>"
    assert checkpoint.manifest.step_aggregation == "product"
    folder = PUBLISHED["armorm"](tmp_path / "b")
    Manifest(max_tokens=50, mean=0.1, std=2.0).write(folder)
    checkpoint = inspect_checkpoint(folder)
    assert checkpoint.kind is ModelKind.ATTRIBUTES
    assert checkpoint.manifest.std == 2.0


def test_members_of_an_ensemble(tmp_path: Path, members: Callable[[str], str]) -> None:
    Manifest(kind="ensemble", members=(members("inf_orm"), members("armorm"))).write(tmp_path)
    with pytest.raises(CheckpointRefused, match="is of kind attributes"):
        inspect_checkpoint(tmp_path)
    Manifest(kind="ensemble", members=(members("qwen_rm"), members("qwen_prm"))).write(tmp_path)
    with pytest.raises(CheckpointRefused, match="is of kind process"):
        inspect_checkpoint(tmp_path)


@pytest.fixture
def members(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str) -> str:
        PUBLISHED[name](tmp_path / name)
        return name

    return make


@pytest.mark.parametrize("name", ["armorm", "qrm", "urm", "qwen_rm", "internlm2"])
def test_heads_are_loaded_in_float32_whatever_the_body_is(name: str, tmp_path: Path) -> None:
    folder = PUBLISHED[name](tmp_path / "m")
    stored = load_file(folder / "model.safetensors")
    model = load(inspect_checkpoint(folder), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    heads = [key for key in stored if not key.startswith(("model.", "lm_head."))]
    assert heads
    assert all(torch.equal(stored[key], state[key]) for key in heads)
