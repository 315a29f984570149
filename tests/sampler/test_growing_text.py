"""A text that is told while it grows: piece by piece, it is the whole text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tiny import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from guerdon.sampler.sampling import found_stop
from guerdon.sampler.wire.openai.growing_text import GrowingText
from guerdon.serving.prompts import TokenArray

END = 0
TEXTS = (
    "Rain is water.\n\n",
    "  café — naïve ",
    "漢字かな混じり文",
    "👩🏽‍🚀!",
    "\u0301e",
    "stop here",
)


def words_and_bytes() -> Any:
    """A tokenizer as Llama 2's: words with the space before them, and bytes of other characters."""
    pieces = [("<unk>", 0.0)] + [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [(f"▁{word}", -1.0) for word in ("Rain", "is", "water.", "stop", "here")]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("make", "anywhere"),
    # Of bytes that end within a character, the latter's decoder shows none of those before either.
    [(tiny_tokenizer, True), (words_and_bytes, False)],
)
def test_its_pieces_make_the_whole_text(make: Callable[[], Any], anywhere: bool) -> None:
    found = make()

    def decode_now(tokens: TokenArray) -> str:
        return str(found.decode(tokens.tolist(), skip_special_tokens=True))

    async def decode(*parts: TokenArray) -> tuple[str, ...]:
        return tuple(map(decode_now, parts))

    texts = st.sampled_from(TEXTS).map(lambda text: found(text)["input_ids"])
    drawn = st.lists(texts, min_size=1)
    stops = st.lists(st.sampled_from(["a", "er", "\n\n", "stop", "字か"]), max_size=2)

    @settings(deadline=None)
    @given(drawn, st.data(), stops)
    def check(parts: list[list[int]], data: st.DataObject, stops: list[str]) -> None:
        tokens = [token for part in parts for token in part]
        cut = data.draw(st.integers(1, len(tokens))) if anywhere else len(tokens)
        tokens = [*tokens[:cut], END]
        growing = GrowingText(decode, stops, ends=[END])
        whole = decode_now(np.asarray(tokens[:-1], dtype=np.int32))
        first_stop = min(filter(whole.count, stops), key=whole.index, default="")
        whole = whole[: found_stop(whole, stops)]

        async def tell() -> str:
            said, start = "", 0
            while start < len(tokens):
                size = data.draw(st.integers(1, 4))
                said += await growing.add(tokens[start : start + size])
                start += size
                assert whole.startswith(said)
            return said + await growing.end(cut, first_stop)

        assert asyncio.run(tell()) == whole

    check()


@pytest.mark.parametrize("text", ["", "\ufffd"])
def test_tokens_without_a_text_of_their_own_cost_no_more_than_others(text: str) -> None:
    """Tokens that are left out of texts, and parts of characters that never end."""
    decoded = 0

    async def decode(*parts: TokenArray) -> tuple[str, ...]:
        nonlocal decoded
        decoded += sum(map(len, parts))
        return tuple(text * len(part) for part in parts)

    async def tell() -> None:
        growing = GrowingText(decode, ["stop"], ends=[])
        for token in range(2000):
            await growing.add([token])

    asyncio.run(tell())
    assert decoded < 2000 * 200
