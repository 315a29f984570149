"""Prompts and answers as token ids, exactly as the policy will see and say them.

A prompt is rendered as the sampler's prompts are, ready for an answer, and tokenised by itself:
what is learned is what can be drawn. The answer is the rest of the rendered conversation up to its
end token, tokenised by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guerdon.data import NO_INPUTS, Answer, Dropped, Message, RowError, TemplateInputs, answer_turn
from guerdon.trainer.common.data.rendering import rendered
from guerdon.trainer.common.data.tokens import check_all_embedded, token_ids
from guerdon.trainer.common.errors import DataError, SettingsError
from guerdon.trainer.common.trl.completions import Completion


def encode(
    tokenizer: Any,
    prompts: Sequence[list[Message]],
    answers: Sequence[Answer],
    lines: Sequence[int],
    source: str,
    *,
    vocab_size: int,
    inputs: Sequence[TemplateInputs] = (),
) -> tuple[list[Completion], list[frozenset[Dropped]]]:
    """Token ids of prompts and of the answers to them, and what the template leaves out of each.

    Args:
        tokenizer: of the policy; its end token ends every answer.
        prompts: the turns before the answers.
        answers: to them.
        lines: where each row stood, for errors.
        source: the file, for errors.
        vocab_size: rows of the policy's embedding.
        inputs: what the template is given beside each conversation; nothing, if left out.

    Raises:
        SettingsError: the tokenizer has no end token.
        DataError: the template refuses a conversation, leaves out other text of it than names and
            the reasoning of earlier turns, or renders its prompt in another way once there is an
            answer; or the policy has no embedding for a token.
    """
    if tokenizer.eos_token_id is None:
        raise SettingsError("the policy's tokenizer has no end token, so no answer could end")
    begun, rest, left_out = [], [], []
    given = inputs or [NO_INPUTS] * len(prompts)
    for prompt, answer, line, beside in zip(prompts, answers, lines, given, strict=True):
        try:
            before, lost = rendered(tokenizer, prompt, beside, add_generation_prompt=True)
            whole, of_answer = rendered(tokenizer, [*prompt, answer_turn(answer)], beside)
        except RowError as error:
            raise DataError(f"{source}, {error.at(line)}") from error
        if not whole.startswith(before):
            raise DataError(
                f"{source}, line {line}: the chat template renders the prompt in another way once "
                "there is an answer, so nothing would be learned of it (--chat-template)"
            )
        begun.append(before)
        rest.append(whole[len(before) :])
        left_out.append(lost | of_answer)
    ended = [_ended(ids, tokenizer.eos_token_id) for ids in token_ids(tokenizer, rest)]
    found: list[Completion] = list(zip(token_ids(tokenizer, begun), ended, strict=True))
    sequences = ((line, [*a, *b]) for line, (a, b) in zip(lines, found, strict=True))
    check_all_embedded(tokenizer, sequences, vocab_size, source)
    return found, left_out


def _ended(ids: list[int], eos: int) -> list[int]:
    """Up to the last end token, which is added where there is none."""
    if eos not in ids:
        return [*ids, eos]
    return ids[: len(ids) - ids[::-1].index(eos)]
