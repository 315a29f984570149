"""Texts to tokens, exactly as the tokenizer does it, with shared beginnings done once.

Tokenizers split a text at their added special tokens before anything else, so a text cut
in front of such a token has the same tokens as its two parts. Answers to one question
share the text up to there. A text that has too many bytes for the model is not tokenised at all.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from guerdon.reward.types import TokenArray
from guerdon.serving.errors import CheckpointRefused

_PROBES = (
    "What is 12 + 30?  It's 42.\n\n",
    " leading, and trailing ",
    "Ünïcödé 東京 🙂 e\u0301\t",
    "\n",
    "",
)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of a text, and where in the text each comes from."""

    ids: TokenArray
    parts: tuple[tuple[Encoding, int], ...]
    """Encodings of the text's pieces, and the character at which each piece begins."""

    def first_from(self, character: int) -> int:
        """The first token that covers anything from this character on; their number if none.

        A token that reaches over the character counts, so nothing after it is lost.
        """
        place = 0
        for encoding, start in self.parts:
            for _, end in encoding.offsets:
                if end + start > character and end > 0:
                    return place
                place += 1
        return place


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Two texts as one sequence."""

    ids: TokenArray
    types: TokenArray
    """`token_type_ids`: which of the two a token belongs to, by the tokenizer's own rule."""
    first_end: int
    """The place after the last token of the first text."""


class TooManyTokens(Exception):
    """A text has too many bytes to be tokenised; says why in words."""


class TextTokenizer:
    """A tokenizer's rules without its state, so that threads can share it.

    Calls of a `transformers` tokenizer set truncation and padding on one shared object;
    this owns a copy that has neither.

    Raises:
        CheckpointRefused: the tokenizer has no such rules, or does more than they say.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise CheckpointRefused(
                f"the tokenizer {type(tokenizer).__name__} has no fast form: save it with a "
                "tokenizer.json"
            )
        # Trimmed offsets leave out white space; we ask which token holds which character.
        rules = backend.to_str().replace('"trim_offsets":true', '"trim_offsets":false')
        self._backend = Tokenizer.from_str(rules)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        self._added, self._cuts = _added_tokens(self._backend)
        self._bytes_per_token = most_bytes_per_token(self._backend)
        self._allowed = threading.local()
        """Each thread's `tokens`, the most that a text may have."""
        self._verify(tokenizer)
        self._split = not self._backend.encode_special_tokens and self._split_is_exact()
        self.between: tuple[int, ...] = ()
        """The tokens that it puts between two texts."""
        self._learn_pairs()

    @contextmanager
    def at_most(self, tokens: int | None) -> Iterator[None]:
        """Tokenise no text, in this thread, that has too many bytes for so many tokens.

        Raises:
            TooManyTokens: such a text was to be tokenised.
        """
        self._allowed.tokens = tokens
        try:
            yield
        finally:
            self._allowed.tokens = None

    def one(self, text: str, *, special: bool = False) -> TokenizedText:
        """The tokens of one text.

        Args:
            text: valid Unicode.
            special: add what the tokenizer adds around a single text.
        """
        encoding = self._encode(text, special=special)
        return TokenizedText(np.asarray(encoding.ids, dtype=np.int32), ((encoding, 0),))

    def many(self, texts: Sequence[str]) -> list[TokenizedText]:
        """The tokens of texts that may begin alike, with nothing added."""
        cut = self._cut(texts) if self._split and len(texts) > 1 else 0
        if cut == 0:
            return [self.one(text) for text in texts]
        head = self.one(texts[0][:cut])
        found = []
        for text in texts:
            tail = self._encode(text[cut:])
            ids = np.concatenate([head.ids, np.asarray(tail.ids, dtype=np.int32)])
            found.append(TokenizedText(ids, (*head.parts, (tail, cut))))
        return found

    def pairs(self, first: str, seconds: Sequence[str]) -> list[TokenizedPair]:
        """`tokenizer([first, …], seconds)`: one pair for each second text.

        As in a list, an empty second text is a text; `tokenizer(first, "")` would leave it out.
        """
        head = self._encode(first)
        end = self._pair_lead + len(head.ids)
        found = []
        for text in seconds:
            if self._join_pairs:
                tail = self._encode(text)
                pair = self._backend.post_process(head, tail)
            else:
                pair = self._encode((first, text), special=True)
            ids, types = (np.asarray(row, dtype=np.int32) for row in (pair.ids, pair.type_ids))
            found.append(TokenizedPair(ids, types, end))
        return found

    def _encode(self, text: str | tuple[str, str], *, special: bool = False) -> Encoding:
        """The library's encoding of a text or a pair."""
        allowed: int | None = getattr(self._allowed, "tokens", None)
        if allowed is not None:
            texts = (text,) if isinstance(text, str) else text
            self._check_bytes(sum(len(each.encode()) for each in texts), allowed)
        # `encode` holds the interpreter's lock: 3 s for a text of 4 MB, in which not even health
        # would be answered. `encode_batch` lets go of it.
        return self._backend.encode_batch([text], add_special_tokens=special)[0]

    def _check_bytes(self, size: int, allowed: int) -> None:
        most = self._bytes_per_token
        if most is None and size > MAX_BYTES_PER_TOKEN * allowed:
            raise TooManyTokens(
                f"it has {size} bytes, more than {MAX_BYTES_PER_TOKEN} for each of the {allowed} "
                "tokens that the model takes"
            )
        if most is not None and (least := -(-size // most)) > allowed:
            raise TooManyTokens(f"it has {least} tokens or more, and the model takes {allowed}")

    def _cut(self, texts: Sequence[str]) -> int:
        """The place to cut all texts at: in front of the last added token that they share, or 0."""
        common = common_length(texts)
        starts: set[int] | None = None
        for text in texts:
            found = set()
            for match in self._added.finditer(text):
                if match.start() >= common:
                    break
                if match.group() in self._cuts:
                    found.add(match.start())
            starts = found if starts is None else starts & found
        return max(starts, default=0) if starts else 0

    def _verify(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """The copy gives what the tokenizer itself gives."""
        some = sorted(self._cuts)[:4]
        probes = [*_PROBES, *(f"a {token} b{token}\n{token}c" for token in some)]
        for text in probes:
            for special in (False, True):
                plain = tokenizer(text, add_special_tokens=special)["input_ids"]
                if self.one(text, special=special).ids.tolist() != list(plain):
                    raise CheckpointRefused(
                        f"the tokenizer {type(tokenizer).__name__} does not do what its "
                        f"tokenizer.json says (on {text!r}): save it again with this version of "
                        "transformers"
                    )

    def _split_is_exact(self) -> bool:
        """Cutting in front of an added token changes nothing, on the probes."""
        for token in sorted(self._cuts)[:8]:
            for before, after in itertools.product(_PROBES, _PROBES):
                parts = [self.one(before).ids, self.one(f"{token}{after}").ids]
                whole = self.one(f"{before}{token}{after}").ids
                if not np.array_equal(np.concatenate(parts), whole):
                    return False
        return bool(self._cuts)

    def _learn_pairs(self) -> None:
        """What stands before and between two texts, and whether they can be joined."""
        sample = self._encode(("a", "b"), special=True)
        order = sample.sequence_ids
        last = len(order) - 1 - order[::-1].index(0)
        self._pair_lead = order.index(0)
        self.between = tuple(sample.ids[last + 1 : order.index(1)])
        self._join_pairs = True
        for first in _PROBES:
            for joined, second in zip(self.pairs(first, _PROBES), _PROBES, strict=True):
                whole = self._encode((first, second), special=True)
                same = (joined.ids.tolist(), joined.types.tolist()) == (whole.ids, whole.type_ids)
                self._join_pairs = self._join_pairs and same


def _added_tokens(backend: Tokenizer) -> tuple[re.Pattern[str], frozenset[str]]:
    """A pattern of the tokens found in the raw text, and those of them to cut in front of.

    The library looks for the leftmost, then the longest of them. One that eats the white
    space before it, or must stand alone, is matched but not cut at.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    texts = sorted((token.content for token in added), key=len, reverse=True)
    pattern = "|".join(re.escape(text) for text in texts) or r"(?!)"
    cuts = (t.content for t in added if not t.lstrip and not t.single_word and t.content)
    return re.compile(pattern), frozenset(cuts)


def common_length(texts: Sequence[str]) -> int:
    """Characters that all texts begin with."""
    least, most = min(texts), max(texts)
    low, high = 0, min(len(least), len(most))
    while low < high:
        middle = (low + high + 1) // 2
        if least[low:middle] == most[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


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
