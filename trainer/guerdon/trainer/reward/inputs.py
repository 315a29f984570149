"""What a run starts from: data, tokenizer and base, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.models import ModelNotFound, resolve_model
from guerdon.trainer.common.data.preferences import Preferences, load_pairs, shared_prompts
from guerdon.trainer.common.data.rows import where_odd
from guerdon.trainer.common.data.tokens import (
    TokenPairs,
    check_all_embedded,
    choose_pad_token,
    embeddings_of,
    load_tokenizer,
    max_positions,
    tokenize_pairs,
)
from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.measuring.measures import percentiles
from guerdon.trainer.reward.settings import RewardModelSettings, RewardSettings


@dataclass
class PairInputs:
    """What a run starts from, checked."""

    settings: RewardSettings
    base: Path
    tokenizer: Any
    grow: bool
    """Whether a pad token was added to the vocabulary."""
    train_data: Preferences
    eval_data: Preferences
    train: TokenPairs
    eval: TokenPairs

    def counts(self) -> dict[str, Any]:
        """How many pairs there are, and all that was left out or looks odd."""

        def one(data: Preferences, tokens: TokenPairs) -> dict[str, Any]:
            return {
                "source": data.source,
                "sha256": data.sha256,
                "pairs": len(tokens.pairs),
                "bad_rows": len(data.bad),
                "too_long": tokens.too_long,
                "same_tokens": tokens.same,
                "duplicates": data.duplicates,
                "contradictions": data.contradictions,
                "empty_answers": len(data.empty_lines),
                "longest_tokens": tokens.longest,
                "unused_margins": data.unused_margins,
                "reasoning_dropped": len(tokens.reasoning_dropped),
                **where_odd(
                    data.bad,
                    {
                        "duplicates": data.duplicate_lines,
                        "contradictions": data.contradiction_lines,
                        "empty_answers": data.empty_lines,
                        "reasoning_dropped": tokens.reasoning_dropped,
                    },
                ),
            }

        shared = shared_prompts(self.train_data, self.eval_data)
        return {
            "train": one(self.train_data, self.train)
            | {"margins": percentiles(self.train_data.margins)},
            "eval": one(self.eval_data, self.eval)
            | {"prompts_in_train": shared, "unused_margins": 0},
        }


def read_inputs(settings: RewardSettings) -> PairInputs:
    """Load and check the data and the tokenizer: everything that can be wrong before training.

    Raises:
        TrainingError: something is; says what.
    """
    base, tokenizer = base_and_tokenizer(settings)
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
    train = tokenize_pairs(
        tokenizer, train_data, max_length=settings.max_length, too_long=settings.too_long
    )
    # Held-out pairs are all scored, as far as the model goes: leaving the long ones out
    # would flatter it.
    config = load_base_config(base)
    known = embeddings_of(config)
    longest = max_positions(config) or 1 << 30
    held_out = tokenize_pairs(tokenizer, eval_data, max_length=longest, too_long=settings.too_long)
    for data, tokens in ((train_data, train), (eval_data, held_out)):
        lined = ((data.lines[p.row], ids) for p in tokens.pairs for ids in (p.chosen, p.rejected))
        check_all_embedded(tokenizer, lined, known, data.source)
    sequences = (ids for t in (train, held_out) for p in t.pairs for ids in (p.chosen, p.rejected))
    grow = choose_pad_token(tokenizer, sequences, known)
    return PairInputs(settings, base, tokenizer, grow, train_data, eval_data, train, held_out)


def base_and_tokenizer(settings: RewardModelSettings) -> tuple[Path, Any]:
    """The folder that training begins from, and its tokenizer.

    Raises:
        TrainingError: there is no such model, or its tokenizer or template can't be used.
    """
    try:
        base = resolve_model(settings.base)
    except ModelNotFound as error:
        raise TrainingError(str(error)) from error
    return base, load_tokenizer(base, settings.chat_template)


def load_base_config(base: Path) -> Any:
    """The base's config, of `transformers`.

    Raises:
        TrainingError: it can't be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"can't read the config of {base}: {error}") from error
