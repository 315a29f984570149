"""Tiny random checkpoints of every architecture, with a real (small) tokenizer.

    folder = tiny_checkpoint(tmp_path / "m", "llama")

The weights are random but not small: scores of different texts differ by about one, so
a test that compares them can see a fault. The default initialisation of transformers
gives nearly constant scores, and would hide most of them.
"""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
)

DECODERS = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
)
ENCODERS = ("bert", "roberta", "deberta-v2", "modernbert")
ARCHITECTURES = DECODERS + ENCODERS
PACKABLE = tuple(a for a in ARCHITECTURES if a != "deberta-v2")
"""Those whose attention can be replaced."""

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
TURN_START, TURN_END, STEP = "<|im_start|>", "<|im_end|>", "<step>"
SPECIAL_TOKENS = (BOS, PAD, EOS, UNK, TURN_START, TURN_END, STEP)
"""In the order of their ids; `<pad>` is 1, as RoBERTa wants it."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The chat template of decoders; it adds no BOS."""

WINDOW = 16
"""Sliding window of the architectures that have one: shorter than most test inputs."""

TEXT = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "How do I boil an egg? Put it into hot water for eight minutes.",
    "I am sorry, but I can't help with that. Is there something else you need?",
    "Answer: 12 + 30 = 42. First add the tens, then add the ones.",
    "user assistant system question answer good bad helpful harmless honest",
)


@functools.cache
def _tokenizer_json(encoder: bool) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}",
            pair=f"{BOS} $A {EOS} $B {EOS}",
            special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS)), (EOS, SPECIAL_TOKENS.index(EOS))],
        )
    return str(tokenizer.to_str())


def tiny_tokenizer(
    *, encoder: bool = False, chat_template: str | None = None, max_length: int = 256
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; an encoder's puts `<s>` and `</s>` around a text."""
    names = {"cls_token": BOS, "sep_token": EOS, "mask_token": UNK} if encoder else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tokenizer_json(encoder)),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[TURN_START, TURN_END, STEP],
        model_max_length=max_length,
        **names,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def give_token_types(folder: Path) -> None:
    """Make the tokenizer of an encoder give the second text of a pair the token type 1."""
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        pair=f"{BOS} $A {EOS} $B:1 {EOS}:1",
        special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS)), (EOS, SPECIAL_TOKENS.index(EOS))],
    )
    rules.save(str(folder / "tokenizer.json"))
    settings_file = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | names))


def _settings(architecture: str, vocabulary: int, max_positions: int) -> dict[str, Any]:
    """Config values of a two-layer model of width 64."""
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": max_positions,
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }
    grouped: dict[str, Any] = {"num_key_value_heads": 2}
    alternating = ["sliding_attention", "full_attention"]
    gemma = {**grouped, "head_dim": 16, "sliding_window": WINDOW, "layer_types": alternating}
    specific: dict[str, dict[str, Any]] = {
        "llama": grouped,
        "qwen2": grouped,
        "qwen3": {**grouped, "head_dim": 16},
        "mistral": {**grouped, "head_dim": 16, "sliding_window": WINDOW},
        # Caps low enough, and a scale far enough from 1/√head_dim, that both matter.
        "gemma2": {**gemma, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4},
        "gemma3_text": {**gemma, "query_pre_attn_scalar": 8},
        "phi3": {**grouped, "sliding_window": None},
        "gpt2": {"n_positions": max_positions, "n_embd": 64, "n_layer": 2, "n_head": 4},
        "gpt_neox": {"rotary_pct": 0.25},
        "bert": {"type_vocab_size": 2},
        "roberta": {"type_vocab_size": 1, "max_position_embeddings": max_positions + 2},
        "deberta-v2": {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
            "pooler_hidden_size": 64,
        },
        "modernbert": {
            "local_attention": WINDOW,
            "layer_types": alternating,
            "classifier_pooling": "cls",
            "cls_token_id": SPECIAL_TOKENS.index(BOS),
            "sep_token_id": SPECIAL_TOKENS.index(EOS),
        },
    }
    return {**common, **specific.get(architecture, {})}


_QUERY_KEY = ("q_proj", "k_proj", "qkv", "Wqkv", "c_attn", "query", "key")
"""In the names of the weights that make queries and keys."""


def _draw(model: torch.nn.Module, seed: int) -> None:
    """Random weights of a scale at which attention is peaked and scores vary by about 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                # Norm weights stay near what the architecture starts from (0 or 1).
                parameter.add_(0.1 * normal(parameter))
            elif "embed" in name or name.endswith(("wte.weight", "wpe.weight")):
                parameter.copy_(0.7 * normal(parameter))
            else:
                gain = 2.0 if any(part in name for part in _QUERY_KEY) else 1.3
                gain = 2.5 if name.startswith("classifier") else gain
                conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
                fan_in = parameter.shape[0] if conv1d else parameter.shape[-1]
                parameter.copy_(gain * fan_in**-0.5 * normal(parameter))


def tiny_checkpoint(
    folder: str | Path,
    architecture: str,
    *,
    num_labels: int = 1,
    seed: int = 0,
    max_positions: int = 256,
    chat_template: str | None = CHATML,
    dtype: torch.dtype = torch.float32,
    token_classification: bool = False,
    causal_lm: bool = False,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint as safetensors, with its tokenizer, and return the folder.

    Args:
        folder: made if need be.
        architecture: the config's `model_type`; others than `ARCHITECTURES` may need overrides.
        num_labels: width of the head.
        seed: two checkpoints with the same arguments hold the same weights.
        max_positions: longest sequence.
        chat_template: for decoders; encoders get none.
        dtype: of the weights in the file.
        token_classification: a head on each token (process rewards).
        causal_lm: no score head at all, a language model's head.
        tokenizer: whether to write the tokenizer too.
        overrides: config values.
    """
    folder = Path(folder)
    encoder = architecture in ENCODERS
    words = tiny_tokenizer(
        encoder=encoder,
        chat_template=None if encoder else chat_template,
        max_length=max_positions,
    )
    values = _settings(architecture, len(words), max_positions) | overrides
    config = AutoConfig.for_model(architecture, num_labels=num_labels, **values)
    auto = AutoModelForSequenceClassification
    if token_classification:
        auto = AutoModelForTokenClassification
    if causal_lm:
        auto = AutoModelForCausalLM
    with warnings.catch_warnings():
        # DeBERTa's module in transformers decorates its functions with torch.jit.script.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        model = auto.from_config(config)
    _draw(model, seed)
    model.to(dtype).save_pretrained(folder)
    if tokenizer:
        words.save_pretrained(folder)
    return folder
