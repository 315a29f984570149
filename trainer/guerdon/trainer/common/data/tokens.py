"""Pairs as token ids, exactly as the reward server makes them, and a safe pad token.

The server renders the conversation by the chat template and tokenises the text with
nothing added, and it scores at the true last token. `transformers` pools at the rightmost
token that is not the pad token; the two agree only when no sequence ends with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.data import Conversation, Message, RowError, is_plain, message_text, texts_in
from guerdon.trainer.common.data.preferences import Preferences
from guerdon.trainer.common.data.rendering import lines_left_out, render
from guerdon.trainer.common.errors import DataError, SettingsError, TrainingError

NEW_PAD_TOKEN = "<|guerdon_pad|>"  # noqa: S105 - a token of the vocabulary


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair as token ids."""

    chosen: list[int]
    rejected: list[int]
    chosen_answer: int
    """Tokens of the chosen answer alone, without the prompt."""
    rejected_answer: int
    row: int = 0
    """The place of the pair among all pairs of the data."""

    @property
    def shared(self) -> int:
        """How many tokens both begin with, short of either's last."""
        most = min(len(self.chosen), len(self.rejected)) - 1
        for i in range(most):
            if self.chosen[i] != self.rejected[i]:
                return i
        return most


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """All pairs that fit, and how many did not."""

    pairs: list[TokenPair]
    too_long: int
    same: int
    """Pairs left out because both answers are the same tokens once rendered."""
    longest: int
    """Tokens of the longest sequence, those left out included."""
    reasoning_dropped: list[int]
    """Lines of conversations whose reasoning the chat template leaves out."""
    names_dropped: list[int]
    """Lines of conversations of which it leaves out who speaks, or which tool answers."""

    def sequences(self) -> Iterator[tuple[int, list[int]]]:
        """Every sequence, with the place of its row."""
        return ((pair.row, ids) for pair in self.pairs for ids in (pair.chosen, pair.rejected))


def load_tokenizer(folder: Path, chat_template: str = "") -> Any:
    """The tokenizer of a model, with its chat template or another.

    Raises:
        SettingsError: there is no template, or the file can't be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't load the tokenizer of {folder}: {error}") from error
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"can't read the chat template: {error}") from error
    if not tokenizer.chat_template:
        raise SettingsError(f"{folder} has no chat template: name one by --chat-template FILE")
    return tokenizer


def tokenize_pairs(
    tokenizer: Any, data: Preferences, *, max_length: int, too_long: str
) -> TokenPairs:
    """Token ids of all pairs; those over the limit are left out and counted.

    Raises:
        DataError: a pair is too long and `too_long` is `error`; the template refuses a
            conversation; or no pair is left.
    """
    chosen = [Conversation.of(pair.prompt + pair.chosen, pair.inputs) for pair in data.rows]
    rejected = [Conversation.of(pair.prompt + pair.rejected, pair.inputs) for pair in data.rows]
    (chosen_texts, one), (rejected_texts, other) = (
        render(tokenizer, column, data) for column in (chosen, rejected)
    )
    columns = [token_ids(tokenizer, texts) for texts in (chosen_texts, rejected_texts)]
    answers = [[_said(each.messages[-1]) for each in column] for column in (chosen, rejected)]
    sizes = [[len(ids) for ids in token_ids(tokenizer, column)] for column in answers]
    rows = list(zip(*columns, *sizes, strict=True))
    lengths = [max(map(len, two)) for two in zip(*columns, strict=True)]
    kept, dropped = fitting(
        lengths, data.lines, data.source, max_length=max_length, too_long=too_long
    )
    pairs = [
        TokenPair(a, b, a_size, b_size, i)
        for i, (a, b, a_size, b_size) in ((i, rows[i]) for i in kept)
        if a != b
    ]
    if not pairs:
        raise DataError(f"{data.source}: no row is left under {max_length} tokens")
    same = len(kept) - len(pairs)
    noted = lines_left_out(data.lines, one, other)
    return TokenPairs(pairs, len(dropped), same, max(lengths), **noted)


def _said(turn: Message) -> str:
    """What an answer says, as it is counted: its text, and what stands beside it."""
    return message_text(turn) if is_plain(turn) else " ".join(text for _, text in texts_in(turn))


def fitting(
    sizes: Sequence[int],
    lines: Sequence[int],
    source: str,
    *,
    max_length: int,
    too_long: str,
    unit: str = "tokens",
    each: int = 1,
) -> tuple[list[int], list[int]]:
    """The places of rows that are not too long, and the lines of those that are.

    Args:
        sizes: of each row's longest sequence.
        lines: where each row stood.
        source: of the rows, for the message.
        max_length: tokens of the longest that is kept.
        too_long: `drop`, or `error` where there shall be none.
        unit: of the sizes.
        each: the most of them in a token.

    Raises:
        DataError: a row is too long and `too_long` is `error`; or all are.
    """
    kept = [i for i, size in enumerate(sizes) if size <= max_length * each]
    long = [i for i, size in enumerate(sizes) if size > max_length * each]
    if long and too_long == "error":
        raise DataError(
            f"{source}, line {lines[long[0]]}: {sizes[long[0]]} {unit}, over the limit of "
            f"{max_length} tokens (--max-length; --too-long drop leaves such rows out)"
        )
    if not kept:
        raise DataError(f"{source}: no row is left under {max_length} tokens")
    return kept, [lines[i] for i in long]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The template decides about special tokens; the tokenizer adds none."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    return found


def embedded_tokens(config: Any) -> int:
    """Tokens for which a model has an embedding.

    Args:
        config: of the model, of `transformers`.
    """
    return int(config.get_text_config().vocab_size)


def max_positions(config: Any) -> int | None:
    """The longest sequence that a model takes, where its config, of `transformers`, says so."""
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(value) if value else None


def check_embedded(tokenizer: Any, ids: Sequence[int], vocab_size: int) -> None:
    """Refuse tokens for which the model has no embedding.

    Args:
        tokenizer: which made the ids.
        ids: of one sequence.
        vocab_size: rows of the model's embedding.

    Raises:
        RowError: names the token.
    """
    largest = max(map(int, ids), default=0)
    if largest >= vocab_size:
        raise RowError(
            "",
            f"holds the token {tokenizer.convert_ids_to_tokens(largest)!r} ({largest}), and the "
            f"model has embeddings for {vocab_size} tokens: it is not this model's tokenizer, or "
            "the token was added without growing the model",
        )


def check_all_embedded(
    tokenizer: Any, sequences: Iterable[tuple[int, Sequence[int]]], vocab_size: int, source: str
) -> None:
    """`check_embedded` for all sequences of a file, each given with its line.

    Raises:
        DataError: names the line and the token.
    """
    for line, ids in sequences:
        try:
            check_embedded(tokenizer, ids, vocab_size)
        except RowError as error:
            raise DataError(f"{source}, line {line}: {error.reason}") from error


def choose_pad_token(tokenizer: Any, sequences: Iterable[Sequence[int]], vocab_size: int) -> bool:
    """Give the tokenizer a pad token that occurs in none of the sequences.

    Its own is kept when it will do; end-of-sequence comes last, because sequences elsewhere
    may end with it. One for which the model has no embedding won't do.

    Args:
        tokenizer: is changed.
        sequences: token ids of all data.
        vocab_size: rows of the model's embedding.

    Returns:
        Whether a token was added to the vocabulary, so that embeddings may need to grow.
    """
    used: set[int] = set()
    for ids in sequences:
        used.update(ids)
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    names = [tokenizer.pad_token, tokenizer.unk_token, *added, *tokenizer.all_special_tokens]
    for name in names:
        if name is None or name == tokenizer.eos_token:
            continue
        place = tokenizer.convert_tokens_to_ids(name)
        if place not in used and place < vocab_size:
            tokenizer.pad_token = name
            return False
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in used:
        tokenizer.pad_token = tokenizer.eos_token
        return False
    tokenizer.add_special_tokens({"pad_token": NEW_PAD_TOKEN})
    return True
