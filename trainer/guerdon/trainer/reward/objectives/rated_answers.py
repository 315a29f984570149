"""Single answers with what is known of them, as rows and as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from guerdon.data import (
    NO_INPUTS,
    Answer,
    Conversation,
    Message,
    TemplateInputs,
    answer_turn,
    message_text,
)
from guerdon.models.chat_template import render_chat
from guerdon.trainer.common.data.rendering import lines_left_out, render
from guerdon.trainer.common.data.rows import Rows, read_rows, where_odd
from guerdon.trainer.common.data.same_prompts import conversation_key, prompt_key
from guerdon.trainer.common.data.tokens import fitting, token_ids
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.reward.inputs import RewardInputs
from guerdon.trainer.reward.settings import RewardModelSettings


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """An answer to a prompt, and its targets."""

    prompt: list[Message]
    answer: Answer
    targets: tuple[float | None, ...]
    """One for each attribute, None where it is not known; or one for each step, 1 or 0."""
    groups: dict[str, str]
    """The row's value of each field that results are broken down by."""
    inputs: TemplateInputs = NO_INPUTS

    @property
    def conversation(self) -> Conversation:
        """The prompt and the answer."""
        return Conversation.of([*self.prompt, answer_turn(self.answer)], self.inputs)


@dataclass(frozen=True, slots=True)
class TokenizedAnswer:
    """An answer and its prompt as tokens, with its targets."""

    ids: list[int]
    places: list[int]
    """The tokens at which the head is read: the last one, or every step's marker."""
    targets: tuple[float | None, ...]
    row: int
    """The place of the answer among all rows of the data."""


@dataclass(frozen=True, slots=True)
class TokenizedAnswers:
    """All rows that fit, and how many did not."""

    rows: list[TokenizedAnswer]
    too_long: int
    longest: int
    """Tokens of the longest sequence, those left out included."""
    reasoning_dropped: list[int]
    """Lines of conversations whose reasoning the chat template leaves out."""
    names_dropped: list[int]
    """Lines of conversations of which it leaves out who speaks, or which tool answers."""

    def sequences(self) -> Iterator[tuple[int, list[int]]]:
        """Every sequence, with the place of its row."""
        return ((row.row, row.ids) for row in self.rows)


class AnswerInputs(RewardInputs[Rows[RatedAnswer], TokenizedAnswers]):
    """What a run on single answers starts from, checked."""

    def counts(self, about: Callable[[TokenizedAnswers], Sequence[str]]) -> dict[str, Any]:
        """How many rows there are, and all that was left out or looks odd.

        Args:
            about: lines on what the targets are.
        """

        def one(data: Rows[RatedAnswer], tokens: TokenizedAnswers) -> dict[str, Any]:
            noted = {
                "reasoning_dropped": tokens.reasoning_dropped,
                "names_dropped": tokens.names_dropped,
            }
            return {
                "source": data.source,
                "sha256": data.sha256,
                "rows": len(tokens.rows),
                "bad_rows": len(data.bad),
                "too_long": tokens.too_long,
                "duplicates": _duplicates(data.rows),
                "longest_tokens": tokens.longest,
                "about": list(about(tokens)),
                **{kind: len(lines) for kind, lines in noted.items()},
                **where_odd(data.bad, noted),
            }

        known = {prompt_key(row) for row in self.train_data.rows}
        leaked = sum(prompt_key(row) in known for row in self.eval_data.rows)
        return {
            "train": one(self.train_data, self.train),
            "eval": one(self.eval_data, self.eval) | {"prompts_in_train": leaked},
        }


def read_answers(
    settings: RewardModelSettings,
    parse: Callable[[Mapping[str, Any], Sequence[str]], RatedAnswer],
    *,
    marker: str = "",
) -> AnswerInputs:
    """Load and check the data and the tokenizer.

    Args:
        settings: of the run.
        parse: makes of a row what it means, with its values of the fields that results are broken
            down by, or raises `RowError`.
        marker: the token that ends a step, which is added to a tokenizer that lacks it; empty
            where the head is read at the last token.

    Raises:
        TrainingError: something is wrong; says what.
    """
    train_data = _read(
        settings.train,
        lambda row: parse(row, ()),
        split=settings.train_split,
        limit=settings.limit,
        bad_rows=settings.bad_rows,
    )
    eval_data = _read(
        settings.eval,
        lambda row: parse(row, settings.by),
        split=settings.eval_split,
        limit=settings.eval_limit,
        bad_rows=settings.bad_rows,
    )
    tokenized = partial(tokenize, marker=marker)
    return AnswerInputs.tokenized(settings, train_data, eval_data, tokenized, marker)


def _read(
    source: str, parse: Callable[[Mapping[str, Any]], RatedAnswer], **how: Any
) -> Rows[RatedAnswer]:
    found = read_rows(source, parse, **how)
    if not found.rows:
        raise DataError(f"{source} holds no row")
    return found


def tokenize(
    tokenizer: Any, data: Rows[RatedAnswer], *, max_length: int, too_long: str, marker: str = ""
) -> TokenizedAnswers:
    """Token ids of all rows, and where the head is read.

    Raises:
        DataError: a row is too long and `too_long` is `error`; the template refuses a
            conversation; a marker is not a token of its own; or no row is left.
    """
    texts, left_out = render(tokenizer, [row.conversation for row in data.rows], data)
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
        return_offsets_mapping=bool(marker),
    )
    sequences: list[list[int]] = encoded["input_ids"]
    lengths = [len(ids) for ids in sequences]
    kept, dropped = fitting(
        lengths, data.lines, data.source, max_length=max_length, too_long=too_long
    )
    rows = []
    for i in kept:
        line, row, ids = data.lines[i], data.rows[i], sequences[i]
        places = [len(ids) - 1]
        if marker:
            start = _answer_start(tokenizer, row, texts[i])
            places = _marked(tokenizer, ids, encoded["offset_mapping"][i], marker, start)
            if len(places) != len(row.targets):
                raise DataError(
                    f"{data.source}, line {line}: the answer has {len(row.targets)} steps, but "
                    f"{len(places)} of its tokens are step markers {marker!r}: the marker must be "
                    "a token of its own that the template does not write"
                )
        rows.append(TokenizedAnswer(ids, places, row.targets, i))
    noted = lines_left_out(data.lines, left_out)
    return TokenizedAnswers(rows, len(dropped), max(lengths), **noted)


def _answer_start(tokenizer: Any, row: RatedAnswer, text: str) -> int:
    """The character at which the answer begins: where another answer's text parts from this.

    The server finds it in the same way.
    """
    said = message_text(answer_turn(row.answer)).lstrip()
    turns = [*row.prompt, answer_turn("b" if said.startswith("a") else "a")]
    beside = render_chat(tokenizer, turns, row.inputs)
    pairs = enumerate(zip(text, beside, strict=False))
    return next((i for i, (one, two) in pairs if one != two), min(len(text), len(beside)))


def _marked(
    tokenizer: Any, ids: Sequence[int], offsets: Iterable[tuple[int, int]], marker: str, start: int
) -> list[int]:
    """The places of the markers in the answer."""
    wanted = token_ids(tokenizer, [marker])[0][0]
    pairs = zip(ids, offsets, strict=True)
    return [i for i, (token, (_, end)) in enumerate(pairs) if token == wanted and end > start]


def _duplicates(rows: Sequence[RatedAnswer]) -> int:
    """Answers that occurred before, word for word, rated alike or not."""
    seen: set[str] = set()
    found = 0
    for row in rows:
        key = conversation_key(row.conversation.messages, row.inputs)
        found += key in seen
        seen.add(key)
    return found
