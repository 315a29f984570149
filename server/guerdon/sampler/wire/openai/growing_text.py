"""The text of a completion while it is drawn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import numpy as np

from guerdon.sampler.sampling import found_stop
from guerdon.serving.prompts import TokenArray

Decode = Callable[[TokenArray, TokenArray], Awaitable[tuple[str, ...]]]
"""The texts of two rows of tokens."""

_BROKEN = "\ufffd"
"""What a decoder gives for a part of a character."""


class GrowingText:
    """Tells of a text what can't change any more.

    A token may be a part of a character, and decoders treat the first token of a text otherwise
    than later ones: so a new token is decoded behind those before it, as vLLM and
    text-generation-inference do, and told once its characters are whole.

    Args:
        decode: gives the text of tokens.
        stops: texts that end the completion, and are no part of what it says.
        ends: tokens that may, likewise.
    """

    def __init__(self, decode: Decode, stops: Sequence[str], ends: Collection[int]) -> None:
        self._decode = decode
        self._stops = stops
        self._ends = ends
        self._held = max(map(len, stops), default=1) - 1
        """Characters at the end that may be the begin of a stop."""
        self._tokens: list[int] = []
        self._context = 0
        """The first token that is decoded before the new ones."""
        self._read = 0
        """Tokens whose text is in `_text`."""
        self._text = ""
        self._told = 0
        """Characters that were told."""

    async def add(self, tokens: Sequence[int]) -> str:
        """What can be told with some more tokens."""
        self._tokens += tokens
        await self._read_until(len(self._tokens) - (self._tokens[-1] in self._ends))
        return self._tell(min(len(self._text) - self._held, found_stop(self._text, self._stops)))

    async def end(self, said: int, *, stopped: bool) -> str:
        """What remains to be told.

        Args:
            said: tokens of the completion that are part of what it says.
            stopped: whether a text ended it.
        """
        await self._read_until(said, last=True)
        return self._tell(found_stop(self._text, self._stops if stopped else ()))

    async def _read_until(self, count: int, *, last: bool = False) -> None:
        if count <= self._read:
            return
        before, after = await self._decode(self._array(self._read), self._array(count))
        if len(after) > len(before) and (last or not after.endswith(_BROKEN)):
            self._text += after[len(before) :]
            self._context, self._read = self._read, count

    def _array(self, end: int) -> TokenArray:
        return np.asarray(self._tokens[self._context : end], dtype=np.int32)

    def _tell(self, end: int) -> str:
        start, self._told = self._told, max(self._told, end)
        return self._text[start : self._told]
