"""Small folders that look as published encoders do on the hub.

Config values and file names are the published ones; weights are random and few, and the
vocabulary is small. The tokenizer is DeBERTa-v3's: a unigram model of SentencePiece in the
rules that transformers 4 wrote into tokenizer.json, which transformers 5 rebuilds otherwise.
"""

from __future__ import annotations

import json
import string
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.support.tiny import TEXT
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import DebertaV2Config

PAD, CLS, SEP, UNK, MASK = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"
MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")
"""PairRM's added tokens, in the order of their ids."""

DEBERTA_V3 = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-07,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "pad_token_id": 0,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}
"""Of microsoft/deberta-v3-large, short of its sizes."""
_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 96, "pooler_hidden_size": 64}  # fmt: skip


def deberta_rules(marks: tuple[str, ...] = ()) -> Tokenizer:
    """What transformers 4 made of DeBERTa-v3's spm.model, NFKC in place of its character map."""
    words = sorted({f"▁{word}" for line in TEXT for word in line.split()})
    letters = sorted({"▁", "⁄", *string.ascii_lowercase, *"".join(TEXT).replace(" ", "")})
    pieces = [(name, 0.0) for name in (PAD, CLS, SEP, UNK)]
    pieces += [(word, -5.0) for word in words] + [(letter, -8.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, 3, False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens([MASK])
    tokenizer.add_tokens([AddedToken(mark, normalized=True) for mark in marks])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, 1), (SEP, 2)],
    )
    return tokenizer


def write_tokenizer(folder: Path, marks: tuple[str, ...] = ()) -> Tokenizer:
    """`tokenizer.json` and what transformers 4 writes beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = deberta_rules(marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "cls_token": CLS,
        "sep_token": SEP,
        "pad_token": PAD,
        "unk_token": UNK,
        "mask_token": MASK,
        "bos_token": CLS,
        "eos_token": SEP,
    }
    settings = {
        **names,
        "do_lower_case": False,
        "model_max_length": 10**30,
        "split_by_punct": False,
        "tokenizer_class": "DebertaV2Tokenizer",
        "vocab_type": "spm",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    (folder / "added_tokens.json").write_text(
        json.dumps({name: i for name, i in added.items() if name in (MASK, *marks)})
    )
    return tokenizer


def vocabulary(folder: Path) -> int:
    """Rows of a checkpoint's embedding."""
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def open_assistant(folder: Path) -> Path:
    """OpenAssistant/reward-model-deberta-v3-{base,large-v2}, its weights as safetensors."""
    tokenizer = write_tokenizer(folder)
    config = DebertaV2Config(**DEBERTA_V3, **_SIZES, vocab_size=tokenizer.get_vocab_size())
    config.num_labels = 1
    with _quiet():
        from transformers import DebertaV2ForSequenceClassification
    model = DebertaV2ForSequenceClassification(config)
    draw(model, seed=0)
    model.save_pretrained(folder)
    return folder


def pairrm(folder: Path, *, seed: int = 0, n_tasks: int = 1, **overrides: Any) -> Path:
    """llm-blender/PairRM-hf: `DebertaV2PairRM`, written without that class."""
    tokenizer = write_tokenizer(folder, MARKS)
    ids = dict(
        zip(
            ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id"),
            (tokenizer.token_to_id(mark) for mark in MARKS),
            strict=True,
        )
    )
    values = DEBERTA_V3 | _SIZES | {"vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(
        json.dumps(
            {
                **values,
                **ids,
                "architectures": ["DebertaV2PairRM"],
                "model_type": "deberta-v2",
                "n_tasks": n_tasks,
                "drop_out": 0.05,
                "torch_dtype": "float32",
                **overrides,
            }
        )
    )
    with _quiet():
        from transformers import DebertaV2Model
    encoder = DebertaV2Model(DebertaV2Config(**values))
    head = torch.nn.ModuleDict({"1": torch.nn.Linear(128, 64), "4": torch.nn.Linear(64, n_tasks)})
    draw(encoder, seed)
    draw(head, seed + 1000)
    tensors = {f"pretrained_model.{name}": t for name, t in encoder.state_dict().items()}
    tensors |= {f"head_layer.{name}": t for name, t in head.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def draw(model: torch.nn.Module, seed: int) -> None:
    """Random weights of a scale at which scores vary by about one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.1 * noise + ("LayerNorm.weight" in name))
            elif "embeddings" in name:
                parameter.copy_(0.7 * noise)
            else:
                gain = 3.0 if name in ("classifier.weight", "4.weight") else 1.5
                parameter.copy_(gain * parameter.shape[-1] ** -0.5 * noise)


def _quiet() -> warnings.catch_warnings[None]:
    """DeBERTa's module in transformers decorates its functions with torch.jit.script."""
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)
