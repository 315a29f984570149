"""Each way in which a folder can be unfit is refused with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints.support import edit_json, edit_tensors
from tests.support.tiny import CHATML, STEP, tiny_checkpoint

from guerdon.models import Manifest, template_hash
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.serving.errors import CheckpointRefused

Fault = Callable[[Path], None]


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def odd_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def missing_shard(folder: Path) -> None:
    shard = "model-00001-of-00002.safetensors"
    names = dict.fromkeys(load_file(folder / "model.safetensors"), shard)
    (folder / "model.safetensors").rename(folder / shard)
    names["score.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def lying_index(folder: Path) -> None:
    missing_shard(folder)
    save_file({"other": torch.zeros(1)}, folder / "model-00002-of-00002.safetensors")


def left_over_shard(folder: Path) -> None:
    """As when a folder is saved anew with other shards: which head would be loaded?"""
    tensors = load_file(folder / "model.safetensors")
    no_weights(folder)
    body = {name: tensor for name, tensor in tensors.items() if name != "score.weight"}
    old = {name: body.pop(name) for name in list(body)[:1]}
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    save_file(body | {"score.weight": tensors["score.weight"]}, folder / first)
    save_file(old | {"score.weight": -tensors["score.weight"]}, folder / second)
    names = dict.fromkeys(tensors, first) | dict.fromkeys(old, second)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def index_outside(folder: Path) -> None:
    no_weights(folder)
    names = {"score.weight": "../elsewhere.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def both_forms(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def headless(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("score.weight"))


def wide_head(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"score.weight": torch.ones(2, 64)}))


def default_labels(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    for key in ("num_labels", "id2label", "label2id"):
        data.pop(key, None)
    (folder / "config.json").write_text(json.dumps(data))


def custom_head(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.update({"regression_layer.weight": torch.ones(19, 64)}))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def custom_code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling.Model"})


def tokenizer_code(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]})


def unknown_class(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["LlamaForScore"])


def no_class(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=None)


def unknown_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="sparkle")


def quantised(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


def float8(folder: Path) -> None:
    edit_tensors(
        folder,
        lambda t: t.update({"score.weight": t["score.weight"].to(torch.float8_e4m3fn)}),
    )


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def other_template(folder: Path) -> None:
    Manifest(template_hash=template_hash("another")).write(folder)


def lost_template(folder: Path) -> None:
    Manifest(template_hash=template_hash(CHATML)).write(folder)
    for path in folder.glob("*.jinja"):
        path.unlink()


def unknown_key(folder: Path) -> None:
    (folder / "guerdon.json").write_text('{"knd": "sequence"}')


def wrong_kind(folder: Path) -> None:
    Manifest(kind="process", step_marker=STEP).write(folder)


def too_many_attributes(folder: Path) -> None:
    Manifest(kind="attributes", attributes={"a": 1.0, "b": 1.0}).write(folder)


def attributes_of_no_kind(folder: Path) -> None:
    Manifest(attributes={"harmful": -1.0}).write(folder)


def marker_of_no_kind(folder: Path) -> None:
    Manifest(step_marker=STEP).write(folder)


def members_of_no_kind(folder: Path) -> None:
    Manifest(members=("a", "b")).write(folder)


def too_many_tokens(folder: Path) -> None:
    Manifest(max_tokens=257).write(folder)


FAULTS: dict[Fault, str] = {
    no_config: "no config.json",
    broken_config: "config.json can't be read",
    pickle_only: "pickle",
    no_weights: "no weights",
    odd_name: "neither model.safetensors nor",
    truncated: "truncated",
    garbage: "not a safetensors file",
    missing_shard: "lacks 1 of the 2 shards",
    left_over_shard: "holds score.weight, and so does another shard",
    lying_index: "score.weight is in .* but it is not",
    index_outside: "no safetensors file beside it",
    both_forms: "holds both",
    headless: "lacks score.weight",
    wide_head: r"score.weight has the shape \[2, 64\]",
    default_labels: "2 outputs",
    custom_head: "regression_layer.weight",
    adapter: "LoRA adapter",
    custom_code: "Python code of its own",
    tokenizer_code: "tokenizer_config.json",
    unknown_class: "LlamaForScore, which is not served",
    no_class: "must name one architecture",
    unknown_type: "can't be used",
    quantised: "quantised",
    float8: "stored as F8_E4M3",
    no_tokenizer: "no tokenizer",
    other_template: "not the one it was trained with",
    lost_template: "the folder has none",
    unknown_key: "did you mean 'kind'",
    wrong_kind: "needs a ForTokenClassification",
    too_many_attributes: "names 2 attributes, but the head has 1",
    attributes_of_no_kind: "attributes, which only kind = attributes has",
    marker_of_no_kind: "step_marker, which only kind = process has",
    members_of_no_kind: "members, which only kind = ensemble has",
    too_many_tokens: "has positions for 256",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_refused(tmp_path: Path, fault: Fault) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    inspect_checkpoint(folder)
    fault(folder)
    with pytest.raises(CheckpointRefused, match=FAULTS[fault]):
        inspect_checkpoint(folder)
