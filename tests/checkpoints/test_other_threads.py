"""Tokenising a long text lets other threads run: one request must not stop the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.tiny import tiny_checkpoint
from transformers import AutoTokenizer

from guerdon.reward.encoding.text_tokenizer import TextTokenizer

LONG = "some words of a long text, " * 40_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder: Path = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")
    return TextTokenizer(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(
    "tokenise",
    [
        lambda tokenizer: tokenizer.one(LONG),
        lambda tokenizer: tokenizer.many([LONG, "short"]),
        lambda tokenizer: tokenizer.pairs(LONG, ["short"]),
    ],
)
def test_others_run_meanwhile(
    tokenizer: TextTokenizer, tokenise: Callable[[TextTokenizer], object]
) -> None:
    began = threading.Event()
    ended = threading.Event()

    def work() -> None:
        began.set()
        tokenise(tokenizer)
        ended.set()

    turns = 0
    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    while not ended.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    assert turns >= 20  # with the interpreter's lock held there are a handful
