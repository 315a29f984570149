"""What the bytes of a text tell of its tokens: never more than there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tiny import TEXT, tiny_checkpoint, tiny_tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.encoding.text_tokenizer import (
    TextTokenizer,
    TooManyTokens,
    most_bytes_per_token,
)
from guerdon.reward.types import FormattedText, ScoreItem, Truncation
from guerdon.serving.errors import InvalidRequest

WORDS = " ".join(TEXT)
SPACES = " " * 40
SPECIAL = f"<|{'longer than all other tokens ' * 4}|>"
COMPOSED = "\u1fbe\u0308\u0301"
"""Seven bytes that NFC makes two."""


def by_bytes() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: byte-level BPE, composed first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXT, "\u0390" * 30, SPACES], trainer)
    return tokenizer


def by_fallback() -> Tokenizer:
    """As Llama 2 and Gemma: characters, and bytes where they are unknown."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    merges = []
    for token in ("a", "▁", "▁▁", "▁▁▁▁", "東"):
        vocabulary[token] = len(vocabulary)
        if len(token) > 1:
            merges.append((token[: len(token) // 2],) * 2)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


BOUNDED = (by_bytes(), by_fallback())


@pytest.mark.parametrize("tokenizer", BOUNDED, ids=["bytes", "fallback"])
@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.text(max_size=20) | st.sampled_from([SPACES, COMPOSED, WORDS, "東京 🙂", "a" * 50]),
        max_size=8,
    ),
    times=st.integers(1, 20),
)
def test_a_text_never_has_fewer_tokens(tokenizer: Tokenizer, parts: list[str], times: int) -> None:
    text = "".join(parts) * times
    most = most_bytes_per_token(tokenizer)
    assert most is not None
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) * most >= len(text.encode())


def test_the_bound_is_that_of_the_longest_token() -> None:
    assert most_bytes_per_token(by_bytes()) == 4 * len(SPECIAL)  # NFC may shorten a text
    assert most_bytes_per_token(by_fallback()) == len("▁▁▁▁".encode())


def spoiled(change: Callable[[Tokenizer], object]) -> Tokenizer:
    tokenizer = by_bytes()
    change(tokenizer)
    return tokenizer


def lowercase(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


def shorten(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace("aa", "a")


def remove_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]
    )


def remove_by_split(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()]
    )


def eat_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])


@pytest.mark.parametrize("change", [lowercase, shorten, remove_spaces, remove_by_split, eat_spaces])
def test_where_characters_can_vanish_nothing_is_known(
    change: Callable[[Tokenizer], object],
) -> None:
    assert most_bytes_per_token(spoiled(change)) is None


def test_where_one_token_may_be_any_number_of_characters_nothing_is_known() -> None:
    some_bytes = Tokenizer(models.BPE(vocab={"a": 0, "<unk>": 1}, merges=[], unk_token="<unk>"))
    some_bytes.pre_tokenizer = pre_tokenizers.ByteLevel()
    words = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    pieces = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    for tokenizer in (some_bytes, words, pieces):
        assert most_bytes_per_token(tokenizer) is None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama")
    return Encoder(inspect_checkpoint(folder))


@pytest.mark.parametrize("field", ["prompt", "responses[1]"])
@pytest.mark.parametrize("formatted", [True, False])
def test_a_hopeless_text_is_refused_before_it_is_tokenised(
    encoder: Encoder, field: str, formatted: bool
) -> None:
    long, short = "x " * 2**22, "y"
    prompt = long if field == "prompt" else short
    item = ScoreItem(
        FormattedText(prompt) if formatted else prompt, [short, short if prompt is long else long]
    )
    most = most_bytes_per_token(tiny_tokenizer(encoder=False).backend_tokenizer)
    assert most is not None
    with pytest.raises(InvalidRequest, match=r"it has \d+ tokens or more") as caught:
        encoder.encode(item, Truncation.REJECT)
    assert caught.value.field == field


def test_what_may_fit_is_tokenised_and_told_exactly(encoder: Encoder) -> None:
    text = "a" * (encoder.max_tokens + 1)
    with pytest.raises(InvalidRequest, match="with its prompt it has"):
        encoder.encode(ScoreItem(FormattedText(text), ["b"]), Truncation.REJECT)
    # What may be dropped from the prompt's left is no reason to refuse, however long it is.
    kept = encoder.encode(ScoreItem("x " * 2**17, ["b"]), Truncation.PROMPT_LEFT)
    assert kept.lengths() == [encoder.max_tokens]
    assert kept.truncated[0] > 2**16


WORD_PIECES = Tokenizer(
    models.WordPiece(vocab={"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3, "##a": 4}, unk_token="[UNK]")
)
WORD_PIECES.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def test_where_bytes_tell_nothing_there_is_a_limit_all_the_same() -> None:
    """5 MiB took 24 s and 3 GiB before they were found to be too long."""
    tokenizer = TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=WORD_PIECES, unk_token="[UNK]", pad_token="[PAD]")
    )
    with tokenizer.at_most(10):
        assert tokenizer.one("a" * 640).ids.tolist() == [0]  # one long word, unknown
        with pytest.raises(TooManyTokens, match="641 bytes, more than 64 for each of the 10"):
            tokenizer.one("a" * 641)
        with pytest.raises(TooManyTokens):
            tokenizer.pairs("a", ["b" * 641])
    assert len(tokenizer.one("a " * 1000).ids) == 1000
