"""Prompts and answers as token ids, exactly as the policy will see and say them.

A prompt is rendered as the sampler's prompts are, ready for an answer, and tokenised by itself:
what is learned is what can be drawn. The answer is the rest of the rendered conversation up to its
end token, tokenised by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guerdon.data import Message
from guerdon.trainer.completions import Completion
from guerdon.trainer.errors import DataError, SettingsError
from guerdon.trainer.tokens import token_ids


def encode(
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    answers: Sequence[str],
    lines: Sequence[int],
    source: str,
) -> list[Completion]:
    """Token ids of prompts and of the answers to them.

    Args:
        tokenizer: of the policy; its end token ends every answer.
        prompts: the turns before the answers.
        answers: their texts.
        lines: where each row stood, for errors.
        source: the file, for errors.

    Raises:
        SettingsError: the tokenizer has no end token.
        DataError: the template refuses a conversation, or renders its prompt in another way once
            there is an answer.
    """
    if tokenizer.eos_token_id is None:
        raise SettingsError("the policy's tokenizer has no end token, so no answer could end")
    begun, rest = [], []
    for prompt, answer, line in zip(prompts, answers, lines, strict=True):
        before = _render(tokenizer, prompt, line, source, add_generation_prompt=True)
        turns = [*prompt, Message(role="assistant", content=answer)]
        whole = _render(tokenizer, turns, line, source)
        if not whole.startswith(before):
            raise DataError(
                f"{source}, line {line}: the chat template renders the prompt in another way once "
                "there is an answer, so nothing would be learned of it (--chat-template)"
            )
        begun.append(before)
        rest.append(whole[len(before) :])
    ended = [_ended(ids, tokenizer.eos_token_id) for ids in token_ids(tokenizer, rest)]
    return list(zip(token_ids(tokenizer, begun), ended, strict=True))


def _render(tokenizer: Any, turns: Any, line: int, source: str, **how: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **how))
    except Exception as error:  # jinja2's errors, and what a template raises itself
        raise DataError(f"{source}, line {line}: the chat template refuses it: {error}") from error


def _ended(ids: list[int], eos: int) -> list[int]:
    """Up to the last end token, which is added where there is none."""
    if eos not in ids:
        return [*ids, eos]
    return ids[: len(ids) - ids[::-1].index(eos)]
