"""A prompt as token ids, as the policy's chat template renders it."""

from __future__ import annotations

from typing import Any

import numpy as np

from guerdon.data import (
    ControlTokens,
    Dropped,
    RowError,
    is_plain,
    json_texts,
    message_text,
    texts_in,
)
from guerdon.trainer.common.data.rendering import rendered
from guerdon.trainer.common.services.policy_text import opening
from guerdon.trainer.common.services.types import Ints, PromptRow


def prompt_tokens(tokenizer: Any, row: PromptRow) -> tuple[Ints, str, frozenset[Dropped]]:
    """Tokens of a prompt, what their end writes of the answer, and what the template leaves out.

    Args:
        tokenizer: of the policy; one without a chat template takes a plain text.
        row: the prompt.

    Raises:
        RowError: it can't be rendered, the template leaves out what it may not, or it has no
            tokens.
    """
    encode = _templated if getattr(tokenizer, "chat_template", None) else _plain
    return encode(tokenizer, row)


def check_spelled(row: PromptRow, control: ControlTokens) -> None:
    """Refuse a prompt of which a text spells a control token.

    Raises:
        RowError: names the column and the token.
    """
    columns = row.inputs.columns()
    texts = [("prompt", text) for turn in row.turns for _, text in texts_in(turn)]
    texts += [(name, text) for name, value in columns.items() for text in json_texts(value)]
    for field, text in texts:
        token = control.first_in(text)
        if token is not None:
            raise RowError(field, f"spells the control token {token!r} (--control-tokens allow)")


def _templated(tokenizer: Any, row: PromptRow) -> tuple[Ints, str, frozenset[Dropped]]:
    """Tokens, what their end writes of the answer, and what the template leaves out.

    The template decides about special tokens, BOS included; the tokenizer adds none.
    """
    try:
        text, left_out = rendered(tokenizer, row.turns, row.inputs, add_generation_prompt=True)
    except RowError as error:
        raise RowError(error.field or "prompt", error.reason) from error
    opened = opening(tokenizer, row.turns, text, row.inputs)
    return _ids(tokenizer, text, special=False), opened, left_out


def _plain(tokenizer: Any, row: PromptRow) -> tuple[Ints, str, frozenset[Dropped]]:
    """Text with the tokenizer's own beginning, but not with its own end: more will follow."""
    if len(row.turns) != 1 or row.turns[0]["role"] != "user" or not is_plain(row.turns[0]):
        raise RowError("prompt", "is a conversation, but the policy has no chat template")
    for name in row.inputs.columns():
        raise RowError(name, "is for a chat template, and the policy has none")
    text = message_text(row.turns[0])
    ids, bare = (_ids(tokenizer, text, special=special) for special in (True, False))
    eos = tokenizer.eos_token_id
    if eos is not None and ids[-1] == eos and bare[-1] != eos:
        ids = ids[:-1].copy()
    return ids, "", frozenset()


def _ids(tokenizer: Any, text: str, *, special: bool) -> Ints:
    found = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    if not found:
        raise RowError("prompt", "has no tokens")
    return np.array(found, dtype=np.int32)
