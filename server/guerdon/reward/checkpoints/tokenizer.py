"""A checkpoint's tokenizer, with the rules that it was trained with.

The rules are those of the folder's tokenizer.json. `transformers` 5 keeps the vocabulary of
that file, but for many classes writes the normaliser, the pre-tokeniser and the settings of the
vocabulary's model anew by rules of its own. DeBERTa-v2's and v3's then lacks the character map of
SentencePiece (NFKC), so that "½", "ﬁ", full-width letters and line breaks become other tokens
than in training; Llama 3's file under another class loses `ignore_merges`.

A few settings of tokenizer_config.json were taken before those of tokenizer.json by
`transformers` 4 and 5 alike. Where the two files differ in one, nobody can tell here which the
model was trained with, and the folder is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from guerdon.reward.checkpoints.deberta_tokenizer import DEBERTA_FILE, deberta_tokenizer
from guerdon.reward.checkpoints.model_config import first_line, read_json
from guerdon.serving.errors import CheckpointRefused

logger = logging.getLogger(__name__)

RULES = "tokenizer.json"
_FILES = (
    RULES,
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    DEBERTA_FILE,
    "sentencepiece.bpe.model",
)
_PROBES = (
    "What is 12 + 30?  It's 42.\n\n",
    " leading, and trailing ",
    "½ ﬁ … № ａｂｃ e\u0301 Ünïcödé 東京 🙂\t\u00a0",
    "I'll, we've; they're\r\n  (don't!) 3.14 – “so”",
)
_FLAGS = {
    "BertNormalizer": ("lowercase", "strip_accents", "handle_chinese_chars"),
    "ByteLevel": ("add_prefix_space",),
}
"""What transformers 4 too took from tokenizer_config.json, or from the defaults of the class,
where tokenizer.json said otherwise."""


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
            return deberta_tokenizer(folder)
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
    if type(tokenizer) is not PreTrainedTokenizerFast:  # which takes the file as it is
        _refuse_contradiction(folder, tokenizer, saved)
        # Whole, not only where a probe shows it: a rule may matter to few texts.
        backend.model = saved.model
        backend.normalizer = saved.normalizer
        backend.pre_tokenizer = saved.pre_tokenizer
        if tokenizer.cls_token is not None and saved.post_processor is not None:
            backend.post_processor = saved.post_processor  # how two texts are put together
    added = saved.get_added_tokens_decoder()
    known = {place: token.content for place, token in backend.get_added_tokens_decoder().items()}
    lost = [token.content for place, token in added.items() if known.get(place) != token.content]
    if lost or not _agree(tokenizer, saved, _PROBES):
        raise CheckpointRefused(
            f"{folder}: {type(tokenizer).__name__} of this version of transformers makes other "
            f"tokens than {RULES} says"
            + (f", as of {lost[0]!r}" if lost else "")
            + ", so its scores would not be those it was trained to give"
        )
    some = [token.content for token in added.values()][:4]
    marked = [f"a {token} b{token}\n{token}c" for token in some]
    if not _agree(tokenizer, saved, marked):  # tokenizer_config.json may say more of them
        logger.warning(
            "%s: around special tokens, %s reads a text otherwise than %s says",
            folder,
            type(tokenizer).__name__,
            RULES,
        )


def _refuse_contradiction(folder: Path, tokenizer: Any, saved: Tokenizer) -> None:
    """Refuse settings that say otherwise than the file, and that training may have followed."""
    for part in ("normalizer", "pre_tokenizer"):
        file = _state(getattr(saved, part))
        made = _state(getattr(tokenizer.backend_tokenizer, part))
        names = _FLAGS.get(file.get("type", ""), ()) if made.get("type") == file.get("type") else ()
        for name in names:
            if _flag(file, name) != _flag(made, name):
                raise _contradiction(folder, tokenizer, name, file[name], made[name])
    wanted = (read_json(folder / "tokenizer_config.json") or {}).get("add_prefix_space")
    found = set(_prefixes(_state(saved.normalizer))) | set(_prefixes(_state(saved.pre_tokenizer)))
    if isinstance(wanted, bool) and found and wanted not in found:
        raise _contradiction(folder, tokenizer, "add_prefix_space", not wanted, wanted)


def _contradiction(
    folder: Path, tokenizer: Any, name: str, file: object, made: object
) -> CheckpointRefused:
    return CheckpointRefused(
        f"{folder} contradicts itself: {RULES} says {name} = {json.dumps(file)}, but "
        f"tokenizer_config.json (or the default of {type(tokenizer).__name__}) says "
        f"{json.dumps(made)}: save the tokenizer that the model was trained with anew, or make "
        "the two agree"
    )


def _state(rule: Any) -> dict[str, Any]:
    """A normaliser or pre-tokeniser as tokenizer.json has it; empty for none."""
    return {} if rule is None else dict(json.loads(rule.__getstate__()))


def _flag(rule: dict[str, Any], name: str) -> object:
    """A setting's effect: accents go with the capitals where nothing is said of them."""
    value = rule.get(name)
    return rule.get("lowercase") if name == "strip_accents" and value is None else value


def _prefixes(rule: dict[str, Any]) -> Iterator[bool]:
    """Whether each part of a rule that may put a space before a text does so."""
    for part in rule.get("normalizers", []) + rule.get("pretokenizers", []):
        yield from _prefixes(part)
    kind = rule.get("type")
    if kind == "Prepend":
        yield True
    elif kind == "Metaspace":
        yield rule.get("prepend_scheme", "always") != "never"
    elif kind == "ByteLevel":
        yield bool(rule["add_prefix_space"])


def _agree(tokenizer: Any, saved: Tokenizer, texts: Sequence[str]) -> bool:
    return all(
        tokenizer(text, add_special_tokens=False)["input_ids"]
        == saved.encode(text, add_special_tokens=False).ids
        for text in texts
    )
