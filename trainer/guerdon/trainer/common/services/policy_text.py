"""What rewards see of a completion: the tokens that were drawn, or their text.

The text keeps the special tokens that are part of an answer (step markers, tool and think marks);
only the token that ended it is left out. Where the generation prompt opens the answer, as by
`<think>`, the text begins with that.

A reward model with the policy's vocabulary and chat template is sent token ids: tokenising the
text again may give other tokens than were drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guerdon.client import Item, TokenIds
from guerdon.client.types import ModelInfo
from guerdon.data import NO_INPUTS, Message, Question, TemplateInputs, answer_turn
from guerdon.models import template_hash, vocab_hash
from guerdon.models.chat_template import render_chat
from guerdon.trainer.common.services.types import PromptRow, Sample

_PROBES = ("guerdon", "a</think>\n\nb", "a<|x|>b")
"""Answers that a template may render otherwise than as they stand."""


def answer_text(tokenizer: Any, ids: Sequence[int], *, finished: bool) -> str:
    """The text of a completion, its special tokens included but for the one that ended it.

    Args:
        tokenizer: of the policy.
        ids: what was drawn.
        finished: whether the last id is the token that ended it.
    """
    text: str = tokenizer.decode(
        ids[:-1] if finished else ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text


def opening(
    tokenizer: Any, turns: Sequence[Message], rendered: str, inputs: TemplateInputs = NO_INPUTS
) -> str:
    """What the generation prompt writes of the answer itself, such as `<think>` and a newline.

    It is what the prompt has beyond the text that the template writes before a given answer.

    Args:
        tokenizer: of the policy, with a chat template.
        turns: the prompt.
        rendered: the prompt with its generation prompt.
        inputs: what the template is given beside the prompt.
    """
    given = _render(tokenizer, turns, inputs, _PROBES[0])
    head = None if given is None else given[: given.rfind(_PROBES[0])]
    if not head or not rendered.startswith(head):
        return ""
    rest = rendered[len(head) :]
    return rest if rest.strip() else ""


@dataclass(frozen=True, slots=True)
class PolicyText:
    """How completions of a policy are put to a reward model."""

    vocab_hash: str
    template_hash: str
    ending_ids: tuple[int, ...]
    """What the template writes after an answer; empty where token ids can't stand for its text."""
    eos_id: int | None

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        turns: Sequence[Message],
        inputs: TemplateInputs = NO_INPUTS,
        others: Iterable[PromptRow] = (),
    ) -> PolicyText:
        """Found out by rendering answers to a prompt.

        Args:
            tokenizer: of the policy.
            turns: a prompt, which the template takes.
            inputs: what the template is given beside the prompt.
            others: further prompts, of other forms: token ids stand for text only where what the
                template writes after an answer is the same.
        """
        template = getattr(tokenizer, "chat_template", None)
        endings = set()
        if template:
            endings = {_ending(tokenizer, row.turns, row.inputs) for row in others}
            endings.add(_ending(tokenizer, turns, inputs))
        return cls(
            vocab_hash(tokenizer.get_vocab()),
            template_hash(template),
            endings.pop() if len(endings) == 1 else (),
            tokenizer.eos_token_id,
        )

    def shares_tokens(self, model: ModelInfo) -> bool:
        """Whether the tokens that were drawn are what the reward model makes of a conversation."""
        return bool(
            self.ending_ids
            and model.vocab_hash == self.vocab_hash
            and model.chat_template_hash == self.template_hash
            and (model.kind != "implicit" or self.eos_id in self.ending_ids)
        )

    def item(self, row: PromptRow, samples: Sequence[Sample], model: ModelInfo) -> Item:
        """Samples of one prompt, as the reward model is asked about them."""
        if not self.shares_tokens(model):
            same_template = model.chat_template_hash == self.template_hash
            return text_item(row, samples, same_template=same_template)
        ending = list(self.ending_ids)
        if model.kind == "implicit":  # what it is likelihood of ends with the end token
            ends = [place for place, token in enumerate(ending) if token == self.eos_id]
            ending = ending[: ends[-1] + 1]
        responses = []
        for sample in samples:
            ids = sample.response_ids_T.tolist()
            responses.append(TokenIds((ids[:-1] if sample.finished else ids) + ending))
        return Item(TokenIds(samples[0].prompt_ids_P.tolist()), responses)


def text_item(row: PromptRow, samples: Sequence[Sample], *, same_template: bool = False) -> Item:
    """Samples of one prompt as texts, which the reward model's own template renders.

    Args:
        row: the prompt. Its tools are part of what was asked.
        samples: of it.
        same_template: whether that template is the policy's, so that it takes its variables too.
    """
    inputs = row.inputs if same_template else replace(row.inputs, chat_template_kwargs={})
    asked = Question(list(row.turns), [sample.text for sample in samples], inputs)
    return Item(asked.asked, asked.responses)


def _ending(tokenizer: Any, turns: Sequence[Message], inputs: TemplateInputs) -> tuple[int, ...]:
    """The tokens that the template writes after an answer, the token that ends it first.

    Empty where the tokens of prompt, answer and ending are not those of the rendered text: the
    template renders the prompt or an answer in another way (DeepSeek-R1's leaves reasoning out), or
    what it writes after an answer begins with no special token, so that the two could merge.
    """
    before = render_chat(tokenizer, turns, inputs, add_generation_prompt=True)
    opened = opening(tokenizer, turns, before, inputs)
    endings = set()
    for probe in _PROBES:
        whole = _render(tokenizer, turns, inputs, opened + probe)
        if whole is None or not whole.startswith(before + probe):
            return ()
        endings.add(whole[len(before + probe) :])
    if len(endings) > 1:
        return ()
    ids = tokenizer(endings.pop(), add_special_tokens=False)["input_ids"]
    return tuple(ids) if ids and ids[0] in tokenizer.all_special_ids else ()


def _render(
    tokenizer: Any, turns: Sequence[Message], inputs: TemplateInputs, answer: str
) -> str | None:
    """The conversation with an answer; None where the template refuses it."""
    try:
        return render_chat(tokenizer, [*turns, answer_turn(answer)], inputs)
    except Exception:  # what a template raises itself; the prompt alone was rendered before
        return None
