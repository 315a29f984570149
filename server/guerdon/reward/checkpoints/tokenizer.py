"""A checkpoint's tokenizer, with the rules that it was trained with.

The rules are those of the folder's tokenizer.json. `transformers` 5 keeps the vocabulary of
that file, but for many classes writes the normaliser and the pre-tokeniser anew by rules of
its own. DeBERTa-v2's and v3's then lacks the character map of SentencePiece (NFKC), so that
"½", "ﬁ", full-width letters and line breaks become other tokens than in training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from guerdon.reward.checkpoints.model_config import first_line, read_json
from guerdon.serving.errors import CheckpointRefused

logger = logging.getLogger(__name__)

RULES = "tokenizer.json"
DEBERTA_FILE = "spm.model"
"""No other architecture's SentencePiece model has this name."""

_FILES = (RULES, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", DEBERTA_FILE,
          "sentencepiece.bpe.model")  # fmt: skip
_PROBES = (
    "What is 12 + 30?  It's 42.\n\n",
    " leading, and trailing ",
    "½ ﬁ … № ａｂｃ e\u0301 Ünïcödé 東京 🙂\t\u00a0",
    "I'll, we've; they're\r\n  (don't!) 3.14 – “so”",
)
_NAMES = {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]",
          "unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}  # fmt: skip
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_UNIGRAM, _CONTROL, _USER_DEFINED = 1, 3, 4
"""In SentencePiece's sentencepiece_model.proto."""


def read_tokenizer(folder: Path, *, own: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Args:
        folder: the checkpoint.
        own: its tokenizer's class is code, which is never run: only tokenizer.json is read.

    Raises:
        CheckpointRefused: there is none, or it can't be read, or not as it was saved.
    """
    if not any((folder / name).is_file() for name in _FILES):
        raise CheckpointRefused(
            f"{folder} has no tokenizer: save it beside the weights (tokenizer.save_pretrained)"
        )
    try:
        if (folder / DEBERTA_FILE).is_file() and not (folder / RULES).is_file():
            return _deberta(folder)
        reader = PreTrainedTokenizerFast if own else AutoTokenizer
        tokenizer = reader.from_pretrained(folder, trust_remote_code=False)
        if (folder / RULES).is_file():
            _keep_rules(folder, tokenizer)
    except CheckpointRefused:
        raise
    except Exception as error:
        raise CheckpointRefused(
            f"the tokenizer of {folder} can't be read: {first_line(error)}"
        ) from error
    return tokenizer


def _keep_rules(folder: Path, tokenizer: Any) -> None:
    """Undo what `transformers` changed of the file's rules."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return  # the encoder refuses it, and says why
    saved = Tokenizer.from_file(str(folder / RULES))
    saved.no_truncation()
    saved.no_padding()
    saved.encode_special_tokens = bool(tokenizer.split_special_tokens)
    some = [token.content for token in saved.get_added_tokens_decoder().values()][:4]
    marked = [f"a {token} b{token}\n{token}c" for token in some]
    if _agree(tokenizer, saved, [*_PROBES, *marked]):
        return
    backend.normalizer = saved.normalizer
    backend.pre_tokenizer = saved.pre_tokenizer
    if not _agree(tokenizer, saved, _PROBES):
        raise CheckpointRefused(
            f"{folder}: {type(tokenizer).__name__} of this version of transformers makes other "
            f"tokens than {RULES} says, so its scores would not be those it was trained to give"
        )
    if not _agree(tokenizer, saved, marked):  # tokenizer_config.json may say more of them
        logger.warning(
            "%s: around special tokens, %s reads a text otherwise than %s says",
            folder, type(tokenizer).__name__, RULES,
        )  # fmt: skip


def _agree(tokenizer: Any, saved: Tokenizer, texts: Sequence[str]) -> bool:
    return all(
        tokenizer(text, add_special_tokens=False)["input_ids"]
        == saved.encode(text, add_special_tokens=False).ids
        for text in texts
    )


def _deberta(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer that transformers 4 made of a DeBERTa-v2's or v3's spm.model.

    Published DeBERTa checkpoints were trained with it (`DebertaV2Converter` in
    src/transformers/convert_slow_tokenizer.py of github.com/huggingface/transformers, 4.x);
    transformers 5 makes another one, see above.
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
            token["content"],
            **{key: bool(token[key]) for key in _FLAGS if key in token},
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
