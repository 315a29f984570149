"""What is refused when a checkpoint is loaded, and what is read from a sound one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoints.support import edit_json, edit_tensors, load
from tests.support.tiny import ARCHITECTURES, BOS, CHATML, STEP, tiny_checkpoint, tiny_tokenizer

from guerdon.models import Manifest
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.types import Attribute, ModelKind
from guerdon.serving.errors import CheckpointRefused

pytestmark = pytest.mark.filterwarnings(
    # DeBERTa scripts its attention when transformers imports it; torch deprecates that.
    "ignore:`torch.jit:DeprecationWarning"
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sound_checkpoint_loads(tmp_path: Path, architecture: str) -> None:
    folder = tiny_checkpoint(tmp_path, architecture)
    checkpoint = inspect_checkpoint(folder)
    assert checkpoint.kind is ModelKind.SEQUENCE
    assert checkpoint.num_labels == 1
    assert checkpoint.max_tokens == 256
    assert len(checkpoint.revision) == 64
    model = load(checkpoint)
    assert type(model).__name__ == checkpoint.architecture
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in model.state_dict().items() if k in stored)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="there is no folder"):
        inspect_checkpoint(tmp_path / "none")


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", causal_lm=True)
    with pytest.raises(CheckpointRefused, match="language model"):
        inspect_checkpoint(folder)


def test_a_language_model_renamed_still_lacks_the_head(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", causal_lm=True)
    edit_json(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(CheckpointRefused, match=r"lacks score\.weight"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("bert", "classifier.weight"),
        ("bert", "classifier.bias"),
        ("roberta", "classifier.dense.weight"),
        ("deberta-v2", "pooler.dense.weight"),
        ("modernbert", "head.norm.weight"),
    ],
)
def test_a_part_of_an_encoders_head_is_missing(tmp_path: Path, architecture: str, key: str) -> None:
    folder = tiny_checkpoint(tmp_path, architecture)
    edit_tensors(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointRefused, match=f"lacks {key}"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.weight"),
        ("bert", "bert.pooler.dense.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias"),
    ],
)
def test_a_tensor_of_the_body_is_missing(tmp_path: Path, architecture: str, key: str) -> None:
    folder = tiny_checkpoint(tmp_path, architecture)
    edit_tensors(folder, lambda tensors: tensors.pop(key))
    checkpoint = inspect_checkpoint(folder)
    with pytest.raises(CheckpointRefused, match=f"lacks {key}"):
        load(checkpoint)


def test_an_unknown_tensor_in_the_body(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    edit_tensors(folder, lambda t: t.update({"model.layers.0.extra.weight": torch.ones(2)}))
    with pytest.raises(CheckpointRefused, match=r"does not know: model\.layers\.0\.extra"):
        load(inspect_checkpoint(folder))


def test_a_wrong_shape_in_the_body(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(CheckpointRefused, match="can't be loaded"):
        load(inspect_checkpoint(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["score.weight", "model.layers.0.mlp.up_proj.weight"])
def test_weights_that_are_not_finite(tmp_path: Path, key: str, value: float) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key][0, 3] = value

    edit_tensors(folder, spoil)
    with pytest.raises(CheckpointRefused, match=f"{key} .* 1 numbers that are not finite"):
        load(inspect_checkpoint(folder))


def test_weights_that_overflow_the_number_type(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["score.weight"][0, 0] = 1e6

    edit_tensors(folder, grow)
    checkpoint = inspect_checkpoint(folder)
    load(checkpoint)
    with pytest.raises(CheckpointRefused, match="in float16"):
        load(checkpoint, torch.float16)


def test_weights_that_change_between_inspection_and_loading(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    checkpoint = inspect_checkpoint(folder)
    edit_tensors(folder, lambda t: t.update({"score.weight": t["score.weight"] + 1}))
    with pytest.raises(CheckpointRefused, match="changed"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_other_files_that_change_meanwhile(tmp_path: Path, name: str) -> None:
    """The config is read again with the weights: it must be the one that the revision names."""
    folder = tiny_checkpoint(tmp_path, "llama")
    checkpoint = inspect_checkpoint(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    with pytest.raises(CheckpointRefused, match="changed"):
        load(checkpoint)
    (folder / name).unlink()
    with pytest.raises(CheckpointRefused):
        load(checkpoint)


def test_shards_load_whole(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    whole = load(inspect_checkpoint(folder))
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    again = load(inspect_checkpoint(folder)).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in whole.state_dict().items())
    truncated_shard = sorted(folder.glob("*.safetensors"))[1]
    truncated_shard.write_bytes(truncated_shard.read_bytes()[:-1])
    with pytest.raises(CheckpointRefused, match="truncated"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("labels", [1, 2, 3])
def test_a_process_head_has_one_output_or_two(tmp_path: Path, labels: int) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", token_classification=True, num_labels=labels)
    Manifest(kind="process", step_marker=STEP).write(folder)
    if labels < 3:
        assert inspect_checkpoint(folder).num_labels == labels
        return
    with pytest.raises(CheckpointRefused, match="3 outputs"):
        inspect_checkpoint(folder)


def test_two_labels_need_names(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", num_labels=2)
    with pytest.raises(CheckpointRefused, match="2 outputs"):
        inspect_checkpoint(folder)
    Manifest(kind="attributes", attributes={"help": 0.75, "harm": -1}).write(folder)
    checkpoint = inspect_checkpoint(folder)
    assert checkpoint.kind is ModelKind.ATTRIBUTES
    assert checkpoint.attributes == (Attribute("help", 0.75), Attribute("harm", -1.0))


def test_process_models(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", token_classification=True)
    with pytest.raises(CheckpointRefused, match="step_marker must say"):
        inspect_checkpoint(folder)
    Manifest(kind="sequence").write(folder)
    with pytest.raises(CheckpointRefused, match="needs a ForSequenceClassification"):
        inspect_checkpoint(folder)
    Manifest(kind="process", step_marker="two tokens").write(folder)
    with pytest.raises(CheckpointRefused, match="is not one token"):
        inspect_checkpoint(folder)
    Manifest(kind="process", step_marker=STEP).write(folder)
    checkpoint = inspect_checkpoint(folder)
    assert checkpoint.kind is ModelKind.PROCESS
    assert checkpoint.step_marker_id == tiny_tokenizer().convert_tokens_to_ids(STEP)
    assert type(load(checkpoint)).__name__ == "LlamaForTokenClassification"


def test_positions_of_roberta_start_after_the_pad(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "roberta", max_positions=40)
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 42
    edit_json(folder / "tokenizer_config.json", model_max_length=10**30)
    assert inspect_checkpoint(folder).max_tokens == 40


def test_the_manifests_limit_wins_over_the_tokenizers(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    edit_json(folder / "tokenizer_config.json", model_max_length=64)
    assert inspect_checkpoint(folder).max_tokens == 64
    Manifest(max_tokens=100).write(folder)
    assert inspect_checkpoint(folder).max_tokens == 100


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_any_change_of_content_is_another_revision(tmp_path: Path, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / "a", "llama")
    twin = tiny_checkpoint(tmp_path / "b", "llama")
    before = inspect_checkpoint(folder).revision
    assert inspect_checkpoint(twin).revision == before
    if name == "model.safetensors":
        edit_tensors(folder, lambda t: t.update({"score.weight": t["score.weight"] + 1e-3}))
    elif name == "chat_template.jinja":
        (folder / name).write_text(CHATML + "\n")
    else:
        (folder / name).write_text((folder / name).read_text() + "\n")
    assert inspect_checkpoint(folder).revision != before


def test_custom_code_never_runs(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    trace = tmp_path / "it-ran"
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(trace)!r}).touch()\n"
        "from transformers import LlamaForSequenceClassification\n"
        "class OwnReward(LlamaForSequenceClassification):\n    pass\n"
    )
    edit_json(
        folder / "config.json",
        architectures=["OwnReward"],
        auto_map={"AutoModelForSequenceClassification": "modeling_own.OwnReward"},
    )
    with pytest.raises(CheckpointRefused, match="code is never run"):
        inspect_checkpoint(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "broken"),
        ("{{ messages[0]['content'] }}", "leaves the assistant's last turn out"),
        (BOS + BOS + CHATML, "two BOS"),
    ],
)
def test_templates_that_can_not_be_right(tmp_path: Path, template: str, reason: str) -> None:
    checkpoint = inspect_checkpoint(tiny_checkpoint(tmp_path, "llama", chat_template=template))
    with pytest.raises(CheckpointRefused, match=reason):
        Encoder(checkpoint)


def test_a_template_that_prints_the_date_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    Encoder(inspect_checkpoint(tiny_checkpoint(tmp_path, "llama", chat_template=template)))
    assert "prints today's date" in caplog.text


def test_a_checkpoint_is_frozen(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(tiny_checkpoint(tmp_path, "llama"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.revision = "other"  # type: ignore[misc]
