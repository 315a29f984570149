"""How few tokens a text can have, by its bytes: what is hopeless is not tokenised at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

MAX_BYTES_PER_TOKEN = 64
"""Most bytes of text for each token that a model takes, where the tokenizer has no bound: more
than any language needs, and enough for code whose indentation the tokenizer drops."""
_NFC_SHRINKS = 4
"""Canonical composition makes no text shorter than 1 / 3.5 of its bytes: U+1FBE U+0308 U+0301,
seven of them, become U+0390."""
_KEEPING = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"})
"""Pre-tokenizers that keep every character, unless they are told to remove some."""


def most_bytes_per_token(tokenizer: Tokenizer) -> int | None:
    """The most UTF-8 bytes of a text that one token can stand for; None where there is no bound.

    There is one for byte-pair encodings that know every byte. WordPiece makes one token of any
    long word, Unigram of any run of unknown characters, and normalizers may drop characters.
    """
    rules = json.loads(tokenizer.to_str())
    vocabulary: Mapping[str, int] = rules["model"].get("vocab") or {}
    if rules["model"].get("type") != "BPE" or not isinstance(vocabulary, dict):
        return None
    steps = list(_steps(rules["pre_tokenizer"], "pretokenizers"))
    if any(step["type"] not in _KEEPING or step.get("behavior") == "Removed" for step in steps):
        return None
    shrinks = 1
    for step in _steps(rules["normalizer"], "normalizers"):
        factor = _shrinks(step)
        if factor is None:
            return None
        shrinks *= factor
    by_byte = any(step["type"] == "ByteLevel" for step in steps)
    if not _knows_every_byte(rules["model"], vocabulary, by_byte=by_byte):
        return None
    added = rules["added_tokens"]
    if any(token["lstrip"] or token["rstrip"] for token in added):
        return None  # it takes in any amount of white space
    # With byte-level encoding a character of a token is a byte of text.
    longest = max(len(token) if by_byte else len(token.encode()) for token in vocabulary)
    return shrinks * max([longest, *(len(token["content"].encode()) for token in added)])


def _steps(rule: Mapping[str, Any] | None, parts: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, however they are nested."""
    if rule is None:
        return
    if rule["type"] == "Sequence":
        for part in rule[parts]:
            yield from _steps(part, parts)
    else:
        yield rule


def _shrinks(step: Mapping[str, Any]) -> int | None:
    """The factor by which a normalizer may shorten a text, in bytes; None if there is no bound."""
    if step["type"] == "NFC":
        return _NFC_SHRINKS
    if step["type"] == "Prepend":
        return 1
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return 1 if pattern and len(step["content"].encode()) >= len(pattern.encode()) else None
    return None


def _knows_every_byte(
    model: Mapping[str, Any], vocabulary: Mapping[str, int], *, by_byte: bool
) -> bool:
    """Whether no byte of a text can get lost, or be one of many in an unknown token."""
    if by_byte:
        return all(byte in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet())
    return bool(model.get("byte_fallback")) and all(
        f"<0x{byte:02X}>" in vocabulary for byte in range(256)
    )
