"""The text of a completion while it is drawn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

import numpy as np

from guerdon.sampler.sampling import found_stop
from guerdon.serving.prompts import TokenArray

DecodeTwo = Callable[[TokenArray, TokenArray], Awaitable[tuple[str, ...]]]
"""The texts of two rows of tokens."""

_BROKEN = "\ufffd"
"""What a decoder gives for a part of a character."""
_MOST_WAITING = 64
"""Tokens that wait for the end of a character; with more, none can be meant."""


class GrowingText:
    """Tells of a text what can't change any more.

    A token may be a part of a character, and decoders treat the first token of a text otherwise
    than later ones: so new tokens are decoded behind those before them, as vLLM and
    text-generation-inference do, and told once their characters are whole.

    Args:
        decode: gives the text of tokens.
        stops: texts that end the completion, and are no part of what it says.
        ends: tokens that may, likewise.
        before: tokens of the prompt that the text goes on with.
    """

    def __init__(
        self,
        decode: DecodeTwo,
        stops: Sequence[str],
        ends: Collection[int],
        before: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._stops = stops
        self._ends = ends
        self._held = max(map(len, stops), default=1) - 1
        """Characters at the end that may be the begin of a stop."""
        self._context = list(before)
        """The tokens before the new ones."""
        self._new: list[int] = []
        self._count = 0
        """Tokens that were added."""
        self._untold = ""

    async def add(self, tokens: Sequence[int]) -> str:
        """What can be told with some more tokens."""
        self._new += tokens
        self._count += len(tokens)
        await self._read(len(self._new) - (self._new[-1] in self._ends))
        end = found_stop(self._untold, self._stops)
        return self._tell(end if end < len(self._untold) else max(0, end - self._held))

    async def end(self, said: int, stop: str) -> str:
        """What remains to be told.

        Args:
            said: tokens of the completion that are part of what it says.
            stop: the text that ended it; empty if none did.
        """
        await self._read(len(self._new) - (self._count - said), last=True)
        return self._tell(found_stop(self._untold, (stop,) if stop else ()))

    async def _read(self, count: int, *, last: bool = False) -> None:
        """Decode so many of the new tokens."""
        if count <= 0:
            return
        context, new = self._context, self._new[:count]
        before, after = await self._decode(_array(context), _array(context + new))
        if after.endswith(_BROKEN) and not last and count <= _MOST_WAITING:
            return
        del self._new[:count]
        if len(after) > len(before):  # else they are left out of texts, and no context either
            self._untold += after[len(before) :]
            self._context = new

    def _tell(self, end: int) -> str:
        told, self._untold = self._untold[:end], self._untold[end:]
        return told


def _array(tokens: Sequence[int]) -> TokenArray:
    return np.asarray(tokens, dtype=np.int32)
