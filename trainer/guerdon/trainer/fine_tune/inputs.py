"""What a run starts from: policy, tokenizer and data, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from guerdon.data import (
    Demonstration,
    Message,
    RowError,
    TemplateInputs,
    answer_turn,
    as_answer,
    message_text,
    parse_demonstration,
)
from guerdon.trainer.common.data.preferences import load_pairs, says
from guerdon.trainer.common.data.rendering import lines_left_out
from guerdon.trainer.common.data.row_notes import group_values, places_by_group
from guerdon.trainer.common.data.rows import read_rows, where_odd
from guerdon.trainer.common.data.tokens import (
    embedded_tokens,
    fitting,
    load_tokenizer,
    max_positions,
)
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.common.models.language_model import find_policy
from guerdon.trainer.common.trl.completions import Completion
from guerdon.trainer.fine_tune.settings import PolicySettings
from guerdon.trainer.fine_tune.tokens import encode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Two answers to one prompt as token ids; the first is preferred."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class DataSplit(Generic[T]):
    """The training data, or what is held out."""

    source: str
    sha256: str
    rows: list[T]
    """Token ids of what is used."""
    turns: list[list[Message]]
    """The prompts of `rows`, as messages."""
    inputs: list[TemplateInputs]
    """What the chat template was given beside them."""
    bad: list[RowError]
    noted: dict[str, list[int]]
    """Lines of rows that were left out although they are well-formed, or are used and yet worth a
    look, by what they are (see `ODD` of common.report)."""
    lengths: list[int]
    """Tokens of each sequence, those too long included."""
    prompts: frozenset[tuple[int, ...]]
    groups: list[dict[str, str]]
    """Values of the fields that were asked for, of each of `rows`."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is used."""
        rows: list[Any] = self.rows
        return max(map(longest_sequence, rows))

    def counts(self) -> dict[str, Any]:
        """How many rows there are, and all that was left out or looks odd."""
        percentiles = np.percentile(self.lengths, (50, 90, 99, 100)).astype(int).tolist()
        return {
            "source": self.source,
            "sha256": self.sha256,
            "rows": len(self.rows),
            "bad_rows": len(self.bad),
            **{key: len(lines) for key, lines in self.noted.items()},
            **where_odd(self.bad, self.noted),
            "tokens": dict(zip(("p50", "p90", "p99", "longest"), percentiles, strict=True)),
        }


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """What a run starts from, checked. Rows are `Completion`s for SFT, else `PairTokens`."""

    settings: PolicySettings
    policy: Path
    config: Any
    """The policy's config, of `transformers`."""
    tokenizer: Any
    train: DataSplit[Any]
    eval: DataSplit[Any]
    subgroups: dict[str, dict[str, list[int]]]
    """Places of held-out rows, by `--by` and its values."""

    def counts(self) -> dict[str, Any]:
        """How many rows both parts have, and what is odd about them."""
        known = self.train.prompts
        shared = sum(tuple(prompt_ids(row)) in known for row in self.eval.rows)
        return {
            "train": self.train.counts(),
            "eval": self.eval.counts() | {"prompts_in_train": shared},
        }


def prompt_ids(row: Completion | PairTokens) -> Sequence[int]:
    """The prompt's token ids."""
    return row.prompt if isinstance(row, PairTokens) else row[0]


def longest_sequence(row: Completion | PairTokens) -> int:
    """Tokens of the row's longest sequence."""
    return row.longest if isinstance(row, PairTokens) else len(row[0]) + len(row[1])


def read_inputs(settings: PolicySettings, read: Callable[..., DataSplit[Any]]) -> PolicyInputs:
    """Load and check the data and the tokenizer: everything that can be wrong before training.

    Args:
        settings: of the run.
        read: `demonstrations` or `pairs`.

    Raises:
        TrainingError: something is; says what.
    """
    policy, config = find_policy(settings.policy)
    tokenizer = load_tokenizer(policy, settings.chat_template)
    size = embedded_tokens(config)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked: any token will do
    train = read(
        settings, tokenizer, size, settings.train, settings.train_split, settings.limit, ()
    )
    held_out = read(
        settings,
        tokenizer,
        size,
        settings.eval,
        settings.eval_split,
        settings.eval_limit,
        settings.by,
    )
    subgroups = places_by_group(settings.eval, settings.by, held_out.groups)
    positions = max_positions(config)
    longest = max(train.longest, held_out.longest)
    if positions and longest > positions:
        raise SettingsError(
            f"the longest row has {longest} tokens, but the policy has {positions} positions: "
            f"--max-length {positions} leaves such rows out"
        )
    return PolicyInputs(settings, policy, config, tokenizer, train, held_out, subgroups)


def demonstrations(
    settings: PolicySettings,
    tokenizer: Any,
    vocab_size: int,
    source: str,
    split: str,
    limit: int,
    by: Sequence[str],
) -> DataSplit[Completion]:
    """The answers of a source as token ids, and what was left out of it."""

    def parse(row: Mapping[str, Any]) -> tuple[Demonstration, dict[str, str]]:
        return parse_demonstration(row), group_values(row, by)

    found = read_rows(source, parse, split=split, limit=limit, bad_rows=settings.bad_rows)
    rows, groups = [row for row, _ in found.rows], [group for _, group in found.rows]
    sizes = [_characters([*r.prompt, answer_turn(r.answer)]) for r in rows]
    limits: dict[str, Any] = {"max_length": settings.max_length, "too_long": settings.too_long}
    short, huge = _short(tokenizer, sizes, found.lines, source, **limits)
    rows, lines = [rows[i] for i in short], [found.lines[i] for i in short]
    groups = [groups[i] for i in short]
    encoded, left_out = encode(
        tokenizer,
        [r.prompt for r in rows],
        [r.answer for r in rows],
        lines,
        source,
        vocab_size=vocab_size,
        inputs=[r.inputs for r in rows],
    )
    lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
    fit, too_long = fitting(lengths, lines, source, **limits)
    known: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    duplicates = []
    for i in fit:
        prompt, answer = encoded[i]
        key = (tuple(prompt), tuple(answer))
        if key in known:
            duplicates.append(lines[i])
        known.add(key)
    return DataSplit(
        source,
        found.sha256,
        [encoded[i] for i in fit],
        [rows[i].prompt for i in fit],
        [rows[i].inputs for i in fit],
        found.bad,
        {
            "too_long": sorted(huge + too_long),
            "duplicates": duplicates,
            **lines_left_out(lines, left_out),
        },
        lengths,
        frozenset(prompt for prompt, _ in known),
        [groups[i] for i in fit],
    )


def pairs(
    settings: PolicySettings,
    tokenizer: Any,
    vocab_size: int,
    source: str,
    split: str,
    limit: int,
    by: Sequence[str],
) -> DataSplit[PairTokens]:
    """The preference pairs of a source as token ids, and what was left out of it."""
    found = load_pairs(source, split=split, limit=limit, bad_rows=settings.bad_rows, by=by)
    usable, lines, groups = [], [], []
    several: list[int] = []
    empty: list[int] = []
    for pair, line, group in zip(found.rows, found.lines, found.groups, strict=True):
        if len(pair.chosen) > 1 or len(pair.rejected) > 1:
            several.append(line)  # the user's turns between would be learned too
        elif not (says(pair.chosen[0]) and says(pair.rejected[0])):
            empty.append(line)
        else:
            usable.append(pair)
            lines.append(line)
            groups.append(group)
    if not usable:
        raise DataError(
            f"{source}: no pair is left: {len(empty)} have an empty answer, {len(several)} an "
            "answer of several turns"
        )
    sizes = [
        _characters(pair.prompt) + max(_characters(pair.chosen), _characters(pair.rejected))
        for pair in usable
    ]
    limits: dict[str, Any] = {"max_length": settings.max_length, "too_long": settings.too_long}
    short, huge = _short(tokenizer, sizes, lines, source, **limits)
    usable, lines = [usable[i] for i in short], [lines[i] for i in short]
    groups = [groups[i] for i in short]
    prompts, inputs = [pair.prompt for pair in usable], [pair.inputs for pair in usable]
    (chosen, one), (rejected, other) = (
        encode(
            tokenizer,
            prompts,
            [as_answer(answer[0]) for answer in answers],
            lines,
            source,
            vocab_size=vocab_size,
            inputs=inputs,
        )
        for answers in ([p.chosen for p in usable], [p.rejected for p in usable])
    )
    rows = [PairTokens(p, c, r) for (p, c), (_, r) in zip(chosen, rejected, strict=True)]
    lengths = [row.longest for row in rows]
    fit, too_long = fitting(lengths, lines, source, **limits)
    kept = [i for i in fit if list(rows[i].chosen) != list(rows[i].rejected)]
    if not kept:
        raise DataError(
            f"{source}: no pair is left: both answers are the same tokens in all {len(fit)}"
        )
    noted = {
        "too_long": sorted(huge + too_long),
        "several_turns": several,
        "empty_answers": empty,
        "same_tokens": [lines[i] for i in sorted(set(fit) - set(kept))],
        "duplicates": found.duplicate_lines,
        "contradictions": found.contradiction_lines,
        **lines_left_out(lines, one, other),
    }
    return DataSplit(
        source,
        found.sha256,
        [rows[i] for i in kept],
        [prompts[i] for i in kept],
        [inputs[i] for i in kept],
        found.bad,
        noted,
        lengths,
        frozenset(tuple(rows[i].prompt) for i in kept),
        [groups[i] for i in kept],
    )


def _characters(turns: Sequence[Message]) -> int:
    return sum(len(message_text(turn)) for turn in turns)


def _short(
    tokenizer: Any, sizes: Sequence[int], lines: Sequence[int], source: str, **limits: Any
) -> tuple[list[int], list[int]]:
    """What `fitting` gives, by characters: tokenising megabytes only to count them is slow."""
    each = max(map(len, tokenizer.get_vocab()))
    return fitting(sizes, lines, source, unit="characters", each=each, **limits)
