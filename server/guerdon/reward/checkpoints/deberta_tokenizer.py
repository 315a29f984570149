"""The fast tokenizer that transformers 4 made of a DeBERTa-v2's or v3's spm.model.

Published DeBERTa checkpoints were trained with it (`DebertaV2Converter` in
src/transformers/convert_slow_tokenizer.py of github.com/huggingface/transformers, 4.x);
transformers 5 makes another one, see `tokenizer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from guerdon.reward.checkpoints.model_config import read_json
from guerdon.serving.errors import CheckpointRefused

DEBERTA_FILE = "spm.model"
"""No other architecture's SentencePiece model has this name."""

_NAMES = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_UNIGRAM, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Types of models and pieces in SentencePiece's sentencepiece_model.proto."""


def deberta_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that has `DEBERTA_FILE` and no tokenizer.json.

    Raises:
        CheckpointRefused: the files are not of one DeBERTa.
    """
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    proto = ModelProto()
    proto.ParseFromString((folder / DEBERTA_FILE).read_bytes())
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise CheckpointRefused(f"{folder}/{DEBERTA_FILE} is no unigram model of SentencePiece")
    settings = read_json(folder / "tokenizer_config.json") or {}
    rules = Tokenizer(
        models.Unigram(
            [(piece.piece, piece.score) for piece in proto.pieces], proto.trainer_spec.unk_id, False
        )
    )
    rules.normalizer = normalizers.Sequence(
        [
            *([normalizers.Lowercase()] if settings.get("do_lower_case") else []),
            normalizers.Strip(),
            *_character_map(proto),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([pre_tokenizers.Punctuation("isolated")] if settings.get("split_by_punct") else []),
            pre_tokenizers.Metaspace(),
        ]
    )
    rules.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
            for piece in proto.pieces
            if piece.type in (_CONTROL, _USER_DEFINED)
        ]
    )
    _add_later_tokens(folder, settings, rules)
    cls, sep = (rules.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    if cls is None or sep is None:
        raise CheckpointRefused(f"{folder}/{DEBERTA_FILE} lacks [CLS] or [SEP]: it is no DeBERTa's")
    rules.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        model_max_length=settings.get("model_max_length", 10**30),
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
        name_or_path=str(folder),
        **_NAMES,
    )


def _character_map(proto: Any) -> list[normalizers.Normalizer]:
    found = proto.normalizer_spec.precompiled_charsmap
    return [normalizers.Precompiled(found)] if found else []


def _add_later_tokens(folder: Path, settings: dict[str, Any], rules: Tokenizer) -> None:
    """[MASK], and whatever else was added after the SentencePiece model was made."""
    later: dict[int, AddedToken] = {}
    for name, place in (read_json(folder / "added_tokens.json") or {}).items():
        special = name == "[MASK]"
        later[int(place)] = AddedToken(name, normalized=not special, special=special)
    for place, token in (settings.get("added_tokens_decoder") or {}).items():
        later[int(place)] = AddedToken(
            token["content"], **{key: bool(token[key]) for key in _FLAGS if key in token}
        )
    if "[MASK]" not in {token.content for token in later.values()}:
        later[max([rules.get_vocab_size() - 1, *later]) + 1] = AddedToken("[MASK]", special=True)
    for place, added in sorted(later.items()):
        rules.add_tokens([added])
        if rules.token_to_id(added.content) != place:
            raise CheckpointRefused(
                f"{folder}: {added.content} should be token {place}, but with {DEBERTA_FILE} it "
                f"becomes {rules.token_to_id(added.content)}: they are not of one tokenizer"
            )
