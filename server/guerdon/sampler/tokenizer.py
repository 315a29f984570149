"""Texts to tokens and back, for callers who don't bring token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from guerdon.data import Dropped, roles_named_in
from guerdon.models.chat_template import left_out, render_chat
from guerdon.models.template_sandbox import BROKEN
from guerdon.sampler.types import PlainText
from guerdon.serving.errors import CheckpointRefused, InvalidRequest
from guerdon.serving.prompts import (
    Conversation,
    FormattedText,
    Message,
    Prompt,
    TokenArray,
    check_roles,
    template_refusals,
)


class Tokenizer(Protocol):
    """Turns a policy's texts to tokens and back. Used by one thread at a time."""

    def encode(self, prompt: Prompt | PlainText, field: str) -> TokenArray:
        """The prompt's tokens, generation prompt included.

        Raises:
            InvalidRequest: it can't be rendered; `field` is the prompt's path.
        """

    def decode(self, tokens: TokenArray, *, skip_special_tokens: bool = False) -> str:
        """The text of tokens."""

    def decode_token(self, token: int) -> str:
        """The text of a token, with the space that it begins with."""


class CheckpointTokenizer:
    """A checkpoint's own tokenizer and chat template.

    A conversation is rendered with the generation prompt and tokenised with nothing added;
    so is a text, as one user turn, where there is a template. Without one, a text gets the
    tokenizer's own special tokens. Rendered text is tokenised as it stands. A turn of a role that
    no model knows, or whose text the template leaves out, is refused; the reasoning of earlier
    turns may be left out, as reasoning models are trained.

    Raises:
        CheckpointRefused: the chat template is broken.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._has_template = bool(getattr(self._tokenizer, "chat_template", None))
        self._roles: frozenset[str] = frozenset()
        if self._has_template:
            self._roles = roles_named_in(self._tokenizer.get_chat_template())
            self._check_template()

    def _check_template(self) -> None:
        try:
            self._render(Conversation((Message(role="user", content="a"),)), "")
        except InvalidRequest as error:
            if isinstance(error.__cause__, BROKEN):
                raise CheckpointRefused(f"the chat template is broken: {error.reason}") from error
            # It may want a system turn, for example: requests will show.

    def encode(self, prompt: Prompt | PlainText, field: str) -> TokenArray:
        """The prompt's tokens, generation prompt included."""
        if isinstance(prompt, np.ndarray):
            return prompt
        special = False
        if isinstance(prompt, PlainText):
            text, special = prompt.text, prompt.add_special_tokens
        elif isinstance(prompt, FormattedText):
            text, field = prompt.text, f"{field}.formatted_text"
        elif isinstance(prompt, str) and not self._has_template:
            text, field, special = prompt, f"{field}.text", True
        else:
            if isinstance(prompt, str):
                field = f"{field}.text"
                prompt = Conversation((Message(role="user", content=prompt),))
            else:
                field = f"{field}.conversation"
            text = self._render(prompt, field)
        try:
            ids = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        except UnicodeEncodeError:
            raise InvalidRequest(field, "is not valid Unicode") from None
        return np.asarray(ids, dtype=np.int32)

    def decode(self, tokens: TokenArray, *, skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        return str(
            self._tokenizer.decode(
                tokens.tolist(),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )

    def decode_token(self, token: int) -> str:
        """The text of a token, with the space that it begins with."""
        text = self.decode(np.asarray([token], dtype=np.int32))
        # SentencePiece's decoders leave it out of a text's first token.
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text

    def _render(self, prompt: Conversation, field: str) -> str:
        if not self._has_template:
            raise InvalidRequest(
                field, "can't be rendered: the model has no chat template; send formatted_text"
            )
        check_roles(field, prompt, self._roles)
        asked = (self._tokenizer, prompt.messages, prompt.inputs)
        with template_refusals(field):
            text = render_chat(*asked, add_generation_prompt=True)
            missing = left_out(*asked, text, add_generation_prompt=True)
        for one in missing:
            # What a tool is called stands in its call.
            is_tool_name = one.part is Dropped.NAME and one.role in ("tool", "function")
            if one.part is not Dropped.EARLIER_REASONING and not is_tool_name:
                raise InvalidRequest(f"{field}.{one.path}", one.reason)
        return text
