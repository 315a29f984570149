"""What a run starts from: data, tokenizer and base, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from guerdon.trainer.common.data.preferences import Preferences, load_pairs, shared_prompts
from guerdon.trainer.common.data.rows import Rows, where_odd
from guerdon.trainer.common.data.tokens import (
    TokenPairs,
    check_all_embedded,
    choose_pad_token,
    embedded_tokens,
    load_tokenizer,
    max_positions,
    token_ids,
    tokenize_pairs,
)
from guerdon.trainer.common.measuring.measures import percentiles
from guerdon.trainer.common.models.language_model import find_policy
from guerdon.trainer.reward.settings import RewardModelSettings, RewardSettings


class Tokens(Protocol):
    """Rows as tokens."""

    def sequences(self) -> Iterator[tuple[int, list[int]]]:
        """Every sequence, with the place of its row."""
        ...


D = TypeVar("D", bound=Rows[Any])
K = TypeVar("K", bound=Tokens)


@dataclass(frozen=True)
class RewardInputs(Generic[D, K]):
    """What a run starts from, checked."""

    settings: Any
    base: Path
    tokenizer: Any
    grow: bool
    """Whether a token was added to the vocabulary."""
    train_data: D
    eval_data: D
    train: K
    eval: K

    @classmethod
    def tokenized(
        cls,
        settings: RewardModelSettings,
        train_data: D,
        eval_data: D,
        tokenize: Callable[..., K],
        marker: str = "",
    ) -> Self:
        """Load the tokenizer, and check that the model can read the data.

        Args:
            settings: of the run.
            train_data: as it was read.
            eval_data: likewise.
            tokenize: makes tokens of data, given the tokenizer, both, and what is too long.
            marker: a token that is added to a tokenizer that lacks it.

        Raises:
            TrainingError: something is wrong; says what.
        """
        base, config = find_policy(settings.base)
        tokenizer = load_tokenizer(base, settings.chat_template)
        known = embedded_tokens(config)
        added = bool(marker) and _add_marker(tokenizer, marker)
        new = {tokenizer.convert_tokens_to_ids(marker)} if added else set()
        # Held-out rows are all scored, as far as the model goes: leaving the long ones out
        # would flatter it.
        longest = max_positions(config) or 1 << 30
        train, held_out = (
            tokenize(tokenizer, data, max_length=most, too_long=settings.too_long)
            for data, most in ((train_data, settings.max_length), (eval_data, longest))
        )
        for data, tokens in ((train_data, train), (eval_data, held_out)):
            lined = (
                (data.lines[row], [token for token in ids if token not in new])
                for row, ids in tokens.sequences()
            )
            check_all_embedded(tokenizer, lined, known, data.source)
        sequences = (ids for tokens in (train, held_out) for _, ids in tokens.sequences())
        grow = choose_pad_token(tokenizer, sequences, known)
        return cls(settings, base, tokenizer, grow or added, train_data, eval_data, train, held_out)


class PairInputs(RewardInputs[Preferences, TokenPairs]):
    """What a run on preference pairs starts from, checked."""

    settings: RewardSettings

    def counts(self) -> dict[str, Any]:
        """How many pairs there are, and all that was left out or looks odd."""

        def one(data: Preferences, tokens: TokenPairs) -> dict[str, Any]:
            noted = {
                "duplicates": data.duplicate_lines,
                "contradictions": data.contradiction_lines,
                "empty_answers": data.empty_lines,
                "reasoning_dropped": tokens.reasoning_dropped,
                "names_dropped": tokens.names_dropped,
            }
            return {
                "source": data.source,
                "sha256": data.sha256,
                "pairs": len(tokens.pairs),
                "bad_rows": len(data.bad),
                "too_long": tokens.too_long,
                "same_tokens": tokens.same,
                "longest_tokens": tokens.longest,
                "unused_margins": data.unused_margins,
                **{kind: len(lines) for kind, lines in noted.items()},
                **where_odd(data.bad, noted),
            }

        shared = shared_prompts(self.train_data, self.eval_data)
        return {
            "train": one(self.train_data, self.train)
            | {"margins": percentiles(self.train_data.margins)},
            "eval": one(self.eval_data, self.eval)
            | {"prompts_in_train": shared, "unused_margins": 0},
        }


def read_pairs(settings: RewardSettings) -> PairInputs:
    """Load and check the pairs and the tokenizer.

    Raises:
        TrainingError: something is wrong; says what.
    """
    train_data = load_pairs(
        settings.train,
        split=settings.train_split,
        limit=settings.limit,
        bad_rows=settings.bad_rows,
        margin_key=settings.margin_key,
    )
    eval_data = load_pairs(
        settings.eval,
        split=settings.eval_split,
        limit=settings.eval_limit,
        bad_rows=settings.bad_rows,
        by=settings.by,
    )
    return PairInputs.tokenized(settings, train_data, eval_data, tokenize_pairs)


def _add_marker(tokenizer: Any, marker: str) -> bool:
    """Make the marker one token; whether it had to be added."""
    from transformers import AddedToken

    ids = token_ids(tokenizer, [marker])[0]
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return False
    tokenizer.add_tokens([AddedToken(marker, special=True, normalized=False)], special_tokens=True)
    return True
