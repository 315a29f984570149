"""What a checkpoint says it is, and whether its head is really there.

Looks at config.json and the headers of the weights, and makes the model without memory to
know which tensors it would have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from guerdon.models import MANIFEST_NAME
from guerdon.reward.adapters import Adapter, find_adapter
from guerdon.reward.checkpoints.weight_files import TensorHeader
from guerdon.reward.engine.language_head import is_language_model
from guerdon.reward.types import ModelKind
from guerdon.serving.errors import CheckpointRefused

LANGUAGE_MODELS = {
    ModelKind.IMPLICIT: "an implicit reward is made of two language models of text",
    ModelKind.VERDICT: "a verdict is read from a language model of text",
}
"""Kinds that need a language model, and why."""
VERDICT_EXAMPLE = (
    '{"kind": "verdict", "question": ["… {prompt} … {response} …"], "yes_token": "yes", '
    '"no_token": "no"}; docs/models.md#verdicts has those of Qwen3-Reranker and '
    "bge-reranker-v2-gemma"
)
"""What the `guerdon.json` of a verdict holds at least."""


def check_config_file(folder: Path) -> Adapter | None:
    """Refuse what must be known before any library opens the folder.

    Returns:
        The module that computes this published model, where `transformers` can't.
    """
    if (folder / "adapter_config.json").exists():
        raise CheckpointRefused(
            f"{folder} is a LoRA adapter: merge it into its base model "
            "(peft's merge_and_unload), head included, and serve the merged folder"
        )
    config = read_json(folder / "config.json")
    if config is None:
        raise CheckpointRefused(f"{folder} has no config.json: it is not a checkpoint")
    if config.get("quantization_config"):
        raise CheckpointRefused(
            f"{folder} is quantised: its scores could not be checked against the model that was "
            "trained; save it dequantised, as float32 or bfloat16"
        )
    if config.get("transformers_weights"):
        raise CheckpointRefused(
            f"{folder} names its weights by transformers_weights in config.json: save them as "
            "model.safetensors instead"
        )
    if config.get("ranker_type"):
        raise CheckpointRefused(
            f"{folder} is in LLM-Blender's own format (ranker_type in config.json), which holds no "
            "tokenizer and no config of the network: llm-blender/PairRM-hf has the same weights in "
            "the format of transformers, and is served"
        )
    adapter = find_adapter(config)
    for name in ("config.json", "tokenizer_config.json"):
        _check_code(folder, name, adapter)
    if adapter is not None and adapter.own_tokenizer and not (folder / "tokenizer.json").is_file():
        raise CheckpointRefused(
            f"{folder} has no tokenizer.json, and the tokenizer of {adapter.name} is Python code, "
            "which is never run here: where you trust that code, run AutoTokenizer.from_pretrained("
            "folder, trust_remote_code=True).save_pretrained(folder) once, which writes one"
        )
    return adapter


def _check_code(folder: Path, name: str, adapter: Adapter | None) -> None:
    """No code is asked for but what an adapter stands for."""
    auto_map = (read_json(folder / name) or {}).get("auto_map")
    if not auto_map:
        return
    foreign = adapter.foreign_code(auto_map) if adapter is not None else "any"
    if not foreign:
        return
    known = "" if adapter is None else f" {foreign}, which is not the published {adapter.name}'s"
    raise CheckpointRefused(
        f"{folder} wants to run Python code of its own{known} (auto_map in {name}), and a "
        "checkpoint's code is never run here; if transformers itself knows the architecture, "
        "save the model anew with it"
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None when there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointRefused(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointRefused(f"{path} must hold one JSON object")
    return found


def read_config(folder: Path, adapter: Adapter | None = None) -> PretrainedConfig:
    """The config, if this version of `transformers` or an adapter knows the model."""
    try:
        if adapter is not None:
            return adapter.read_config(read_json(folder / "config.json") or {})
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # an unknown model_type, or values that the class refuses
        raise CheckpointRefused(
            f"{folder}/config.json can't be used: {first_line(error)}"
        ) from error


def read_architecture(
    folder: Path,
    config: PretrainedConfig,
    adapter: Adapter | None = None,
    *,
    kind: ModelKind | None = None,
) -> str:
    """The class that the checkpoint says it is, if that is what would be loaded.

    Args:
        folder: of the checkpoint.
        config: its own.
        adapter: what computes it, where `transformers` does not have it.
        kind: one of `LANGUAGE_MODELS`: it shall be a language model; else it shall not.
    """
    names = list(config.architectures or ())
    if len(names) != 1:
        raise CheckpointRefused(
            f"{folder}/config.json must name one architecture, it names {names}: without it "
            "nobody can tell a reward model from a language model"
        )
    name = str(names[0])
    if kind is not None:
        if is_language_model(name, config) and config.get_text_config() is config:
            return name
        raise CheckpointRefused(f"{folder} is a {name}: {LANGUAGE_MODELS[kind]}")
    if adapter is not None or name in _known_classes(config):
        return name
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        raise CheckpointRefused(
            f"{folder} is a language model ({name}), not a reward model: it has no score head; "
            "train one with `guerdon train reward`, or serve a policy trained by preferences with "
            f"its reference (kind = implicit); a {MANIFEST_NAME} makes a verdict of one that says "
            f"yes or no, as rerankers and verifiers do: {VERDICT_EXAMPLE}"
        )
    raise CheckpointRefused(
        f"{folder} is a {name}, which is not served: only ForSequenceClassification and "
        "ForTokenClassification classes of transformers, and the published models that "
        "docs/models.md lists, are"
    )


def _known_classes(config: PretrainedConfig) -> set[str]:
    known: set[str] = set()
    for mapping in (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ):
        names = mapping.get(config.model_type, ())
        known.update([names] if isinstance(names, str) else names)
    return known


def is_tokenwise(architecture: str, config: PretrainedConfig) -> bool:
    """Whether the model scores each token."""
    names = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.get(config.model_type, ())
    return architecture in ([names] if isinstance(names, str) else names) or (
        architecture.endswith("ForTokenClassification")
    )


def auto_class(architecture: str, config: PretrainedConfig) -> Any:
    """The `AutoModelFor…` that makes it."""
    if is_language_model(architecture, config):
        return AutoModelForCausalLM
    if is_tokenwise(architecture, config):
        return AutoModelForTokenClassification
    return AutoModelForSequenceClassification


def make_skeleton(
    folder: Path, config: PretrainedConfig, architecture: str, adapter: Adapter | None = None
) -> PreTrainedModel:
    """The model that would be loaded, without memory for its tensors."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = (
                auto_class(architecture, config).from_config(config, trust_remote_code=False)
                if adapter is None
                else adapter.network(config)
            )
    except Exception as error:
        raise CheckpointRefused(
            f"no {architecture} can be made of {folder}/config.json: {first_line(error)}"
        ) from error
    return model


def check_tensors(
    folder: Path,
    skeleton: PreTrainedModel,
    headers: dict[str, TensorHeader],
    adapter: Adapter | None = None,
) -> None:
    """The whole head is there and nothing is beside it. The rest is checked on loading."""
    name = type(skeleton).__name__
    body = f"{skeleton.base_model_prefix}."
    if adapter is not None and (layout := adapter.layout(skeleton.config)) is not None:
        wanted = layout
        extra = sorted(headers.keys() - wanted.keys())
    else:
        state = {key: tuple(t.shape) for key, t in skeleton.state_dict().items()}
        wanted = {key: shape for key, shape in state.items() if not key.startswith(body)}
        parts = {key.partition(".")[0] for key in state} | {k for k, _ in skeleton.named_children()}
        extra = sorted(key for key in headers if key.partition(".")[0] not in parts)
    for key, shape in wanted.items():
        if key not in headers:
            what = "" if key.startswith(body) else f", a part of the score head of {name}"
            raise CheckpointRefused(
                f"{folder} lacks {key}{what}: it would be random; save the trained head with the "
                "model"
            )
        if headers[key].shape != shape:
            raise CheckpointRefused(
                f"{key} has the shape {list(headers[key].shape)} in {folder}, but the config "
                f"makes it {list(shape)}: num_labels or hidden_size is wrong"
            )
    if adapter is not None:
        extra = [key for key in extra if not key.startswith(adapter.unused)]
    if extra:
        raise CheckpointRefused(
            f"{folder} holds {extra[0]}{f' and {len(extra) - 1} more' if extra[1:] else ''}, which "
            f"{name} does not know and would ignore: a custom head must not be served as a plain "
            "one"
        )


def first_line(error: BaseException) -> str:
    """The first line of a library's error."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
