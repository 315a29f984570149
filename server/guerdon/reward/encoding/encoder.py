"""Items to tokens: templates, special tokens, truncation, step markers.

What is scored is what the model was trained on. A conversation is rendered with the chat
template and tokenised with nothing added, as TRL's `RewardTrainer` does; docs/models.md
has the rules for every form of prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from guerdon.data import Answer, ControlTokens, answer_turn, message_text
from guerdon.reward.checkpoints.checkpoint import Checkpoint
from guerdon.reward.encoding.chat_template import CONVERSATION, ChatTemplate, check_turns
from guerdon.reward.encoding.foreign_text import ForeignTexts
from guerdon.reward.encoding.sequences import (
    ReadoutPlaces,
    TokenSequence,
    check_control_tokens,
    check_unicode,
    common_prefix,
    hash_sequences,
    leading,
    longest_field,
    plain_turns,
    response_answers,
    response_texts,
)
from guerdon.reward.encoding.text_tokenizer import (
    TextTokenizer,
    TokenizedText,
    TooManyTokens,
    common_length,
)
from guerdon.reward.types import (
    Conversation,
    Dropped,
    EncodedItem,
    ForeignText,
    FormattedText,
    Message,
    PlainText,
    Response,
    ScoreItem,
    TokenArray,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused, InvalidRequest


class Encoder:
    """Makes tokens of items for one checkpoint. Threads may share it.

    Args:
        checkpoint: as it was inspected.

    Raises:
        CheckpointRefused: its tokenizer or template can't be used.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = tokenizer = checkpoint.tokenizer
        self._text = TextTokenizer(tokenizer)
        self._double_bos = checkpoint.manifest.double_bos
        self._ending_id = checkpoint.ending_id
        self._readout_places = ReadoutPlaces(checkpoint)
        self._template = ChatTemplate(tokenizer) if checkpoint.chat_template_hash else None
        self._control = ControlTokens(tokenizer, allowed=[checkpoint.manifest.step_marker])
        self._bos: int | None = tokenizer.bos_token_id
        self._leading = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        self.template_hash = checkpoint.chat_template_hash
        """SHA-256 of the chat template; empty without one."""
        self.max_tokens = checkpoint.max_tokens
        """The longest sequence."""
        self.vocab_size = int(checkpoint.config.get_text_config().vocab_size)
        """Rows of the model's embedding: every id is less."""
        self.takes_pairs = self._template is None and tokenizer.sep_token_id in self._text.between
        """Whether prompt and response are a text pair (BERT and its kin)."""
        self._uses_types = self._check_types(checkpoint)
        self.template_drops: tuple[Dropped, ...] = ()
        """What the chat template leaves out of conversations."""
        if self._template is not None:
            self._check_template(self._template)
            self.template_drops = self._template.learn_drops()
        self._foreign = ForeignTexts(
            self._template,
            self._text,
            checkpoint.folder.name,
            reads_marks=checkpoint.step_marker_id is not None,
            double_bos=self._double_bos,
        )

    def encode(
        self, item: ScoreItem, truncation: Truncation, *, reject_control_tokens: bool = False
    ) -> EncodedItem:
        """The tokens of one item.

        Raises:
            InvalidRequest: with the field's path below the item.
        """
        if not item.responses:
            raise InvalidRequest("responses", "must have at least one")
        item = self._native(item)
        if reject_control_tokens:
            check_control_tokens(item, self._control)
        # With REJECT no part of a sequence may be longer; else the prompt's left may be dropped.
        most = self.max_tokens if truncation is Truncation.REJECT else None
        try:
            with self._text.at_most(most):
                field, sequences = self._sequences(item)
        except TooManyTokens as error:
            raise InvalidRequest(longest_field(item), f"is too long: {error}") from None
        for place, sequence in enumerate(sequences):
            self._check(field, place, sequence)
            if self._ending_id is not None and sequence.ids[-1] != self._ending_id:
                sequence.ids = np.append(sequence.ids, np.int32(self._ending_id))
            self._fit(place, sequence, truncation)
        readout = self._readout(field, item, sequences)
        shared = common_prefix([sequence.ids for sequence in sequences])
        types = [s.types for s in sequences if s.types is not None]
        dropped = tuple(sequence.dropped for sequence in sequences)
        return EncodedItem(
            prefix=sequences[0].ids[:shared],
            suffixes=tuple(sequence.ids[shared:] for sequence in sequences),
            truncated=tuple(sequence.truncated for sequence in sequences),
            readout=readout,
            token_types=tuple(types) if any(t.any() for t in types) else (),
            dropped=dropped if any(dropped) else (),
            hashes=hash_sequences(sequences),
        )

    # Forms of prompts

    def _native(self, item: ScoreItem) -> ScoreItem:
        """An item whose prompt has a form of our own."""
        return self._foreign.read(item) if isinstance(item.prompt, ForeignText) else item

    def _sequences(self, item: ScoreItem) -> tuple[str, list[TokenSequence]]:
        """The name of the prompt's form, and the sequences."""
        prompt = item.prompt
        if isinstance(prompt, np.ndarray):
            return "prompt.token_ids", self._from_ids(prompt, item.responses)
        if isinstance(prompt, Conversation):
            answers = response_answers(item.responses)
            return CONVERSATION, self._from_conversation(prompt, answers)
        assert not isinstance(prompt, ForeignText)
        if isinstance(prompt, str) and self._template is not None:
            check_unicode("prompt.text", prompt)
            asked = Conversation((Message(role="user", content=prompt),))
            answers = response_answers(item.responses)
            return "prompt.text", self._from_turns(self._template, "prompt.text", asked, answers)
        responses = response_texts(item.responses)
        if isinstance(prompt, FormattedText):
            check_unicode("prompt.formatted_text", prompt.text)
            return "prompt.formatted_text", self._from_formatted(prompt.text, responses)
        if isinstance(prompt, PlainText):
            check_unicode("prompt.text", prompt.text)
            return "prompt.text", self._from_text_alone(prompt.text, responses)
        check_unicode("prompt.text", prompt)
        if self.takes_pairs:
            return "prompt.text", self._from_pairs(prompt, responses)
        return "prompt.text", self._from_plain(prompt, responses)

    def _from_ids(self, prompt: TokenArray, responses: Sequence[Response]) -> list[TokenSequence]:
        start = self._checked_ids("prompt.token_ids", prompt)
        end = len(start)
        found = []
        for place, response in enumerate(responses):
            if not isinstance(response, np.ndarray):
                form = "text" if isinstance(response, str) else "message"
                raise InvalidRequest(
                    f"responses[{place}].{form}", "must be token ids, because the prompt is"
                )
            rest = self._checked_ids(f"responses[{place}].token_ids", response)
            found.append(TokenSequence(np.concatenate([start, rest]), lambda: end))
        return found

    def _checked_ids(self, field: str, ids: TokenArray) -> TokenArray:
        if ids.ndim != 1 or len(ids) == 0:
            raise InvalidRequest(field, "must hold at least one id")
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if len(outside):
            place = int(outside[0])
            raise InvalidRequest(
                f"{field}.ids[{place}]",
                f"is {int(ids[place])}, but the model's vocabulary has {self.vocab_size} tokens",
            )
        return ids.astype(np.int32, copy=False)

    def _from_formatted(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        texts = self._text.many([prompt + response for response in responses])
        return [TokenSequence(text.ids, partial(text.first_from, len(prompt))) for text in texts]

    def _from_plain(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        return self._from_text_alone(prompt, responses)

    def _from_text_alone(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        texts = [self._text.one(prompt + response, special=True) for response in responses]
        return [TokenSequence(text.ids, partial(text.first_from, len(prompt))) for text in texts]

    def _from_pairs(self, prompt: str, responses: list[str]) -> list[TokenSequence]:
        return [
            TokenSequence(
                pair.ids, partial(int, pair.first_end), pair.types if self._uses_types else None
            )
            for pair in self._text.pairs(prompt, responses)
        ]

    def _from_conversation(
        self, conversation: Conversation, responses: list[Answer]
    ) -> list[TokenSequence]:
        check_turns(conversation, self._template.roles if self._template is not None else ())
        if self._template is not None:
            return self._from_turns(self._template, CONVERSATION, conversation, responses)
        if self.takes_pairs and [turn["role"] for turn in conversation.messages] == ["user"]:
            ((_, question),) = plain_turns(conversation, CONVERSATION)
            return self._from_pairs(question, response_texts(responses))
        raise InvalidRequest(
            CONVERSATION,
            "must be a single user turn: the model has no chat template and reads one question "
            "and one answer"
            if self.takes_pairs
            else "can't be rendered: the model has no chat template; send text or formatted_text",
        )

    def _from_turns(
        self,
        template: ChatTemplate,
        field: str,
        conversation: Conversation,
        responses: list[Answer],
    ) -> list[TokenSequence]:
        rendered = [template.render(field, conversation, response) for response in responses]
        dropped = [
            template.dropped(field, conversation, place, *both)
            for place, both in enumerate(zip(responses, rendered, strict=True))
        ]
        found = []
        for text, whole, response, left_out in zip(
            self._text.many(rendered), rendered, responses, dropped, strict=True
        ):
            twice = self._double_bos and leading(text.ids, {self._bos}) == 1
            ids = np.concatenate([text.ids[:1], text.ids]) if twice else text.ids

            start = partial(
                _response_start, template, field, conversation, response, whole, text, int(twice)
            )
            found.append(TokenSequence(ids, start, dropped=left_out))
        return found

    def _check_template(self, template: ChatTemplate) -> None:
        """The template writes what the model reads, and no more."""
        rendered = template.sample()
        if rendered is None:
            return  # requests will show
        ids = self._text.one(rendered).ids
        self._readout_places.check_template(ids)
        if not self._double_bos and self._bos is not None and leading(ids, {self._bos}) > 1:
            raise CheckpointRefused(
                "the chat template begins with two BOS tokens: set double_bos in guerdon.json if "
                "the model was trained so"
            )

    # Text pairs

    def _check_types(self, checkpoint: Checkpoint) -> bool:
        """Whether the model wants `token_type_ids` of a pair."""
        kinds = getattr(checkpoint.config, "type_vocab_size", None) or 0
        if not kinds or "token_type_ids" not in self._tokenizer.model_input_names:
            return False
        (pair,) = self._text.pairs("a", ["b"])
        most = int(pair.types.max())
        if self.takes_pairs and most >= kinds:
            raise CheckpointRefused(
                f"the tokenizer gives token types up to {most}, but the model knows "
                f"{kinds} (type_vocab_size): it is not the tokenizer it was trained with"
            )
        return True

    # Checks of a sequence

    def _check(self, field: str, place: int, sequence: TokenSequence) -> None:
        ids = sequence.ids
        if len(ids) == 0:
            raise InvalidRequest(f"responses[{place}]", "makes no token at all with its prompt")
        if int(ids.max()) >= self.vocab_size:
            raise InvalidRequest(
                f"responses[{place}]",
                f"or its prompt holds the token {self._name(int(ids.max()))}, for which the model "
                "has no embedding",
            )
        allowed = 2 if self._double_bos else 1
        if self._bos is not None and leading(ids, {self._bos}) > allowed:
            raise InvalidRequest(
                field,
                f"begins with more than {allowed} BOS token{'s' if allowed > 1 else ''} "
                f"({self._name(self._bos)}), which the model was not trained on",
            )

    def _name(self, token: int) -> str:
        return repr(self._tokenizer.convert_ids_to_tokens(token))

    def _fit(self, place: int, sequence: TokenSequence, truncation: Truncation) -> None:
        """Drop tokens from the prompt's left where that is allowed and enough."""
        length = len(sequence.ids)
        excess = length - self.max_tokens
        if excess <= 0:
            return
        field = f"responses[{place}]"
        if truncation is Truncation.REJECT:
            raise InvalidRequest(
                field,
                f"is too long: with its prompt it has {length} tokens, and the model takes "
                f"{self.max_tokens}",
            )
        end = sequence.prompt_end()
        if sequence.prompt_start is not None:
            keep = min(sequence.prompt_start(), end)
        else:
            keep = min(leading(sequence.ids, self._leading), end)
        if excess > end - keep:
            raise InvalidRequest(
                field,
                f"is too long even without its prompt: {length - (end - keep)} tokens, and the "
                f"model takes {self.max_tokens}",
            )
        sequence.ids = np.delete(sequence.ids, slice(keep, keep + excess))
        if sequence.types is not None:
            sequence.types = np.delete(sequence.types, slice(keep, keep + excess))
        sequence.truncated = excess
        sequence.prompt_end = lambda: end - excess

    def _readout(
        self, field: str, item: ScoreItem, sequences: Sequence[TokenSequence]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """The places of each sequence that are read; empty where the head knows them itself."""
        renders = self._template is not None and isinstance(item.prompt, Conversation | str)
        return self._readout_places.find(field, item.responses, sequences, renders=renders)


def _response_start(
    template: ChatTemplate,
    field: str,
    conversation: Conversation,
    response: Answer,
    rendered: str,
    tokens: TokenizedText,
    before: int,
) -> int:
    """The token at which the response begins in the rendered conversation, with those before it.

    It is where this rendering parts from that of another response. The generation prompt
    would not do: templates may end it with more than precedes a given answer.
    """
    said = message_text(answer_turn(response)).lstrip()
    other = "b" if said.startswith("a") else "a"
    shared = common_length([rendered, template.render(field, conversation, other)])
    return before + tokens.first_from(shared)
