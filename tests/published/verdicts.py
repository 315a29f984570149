"""Small random rebuilds of published language models that are asked a question, and their formulas.

The formulas are those of the model cards, for one pair of query and document, by plain
`transformers` over all logits of the whole sequence:

    Qwen3-Reranker            huggingface.co/Qwen/Qwen3-Reranker-0.6B, "Transformers Usage"
    bge-reranker-v2-gemma     huggingface.co/BAAI/bge-reranker-v2-gemma, and `BaseLLMReranker` in
                              github.com/FlagOpen/FlagEmbedding
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tests.support.tiny import tiny_checkpoint
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from guerdon.models import Manifest

QWEN_SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
QWEN_END = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QWEN_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BGE_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)

QWEN3_RERANKER: dict[str, Any] = {
    "kind": "verdict",
    "question": (
        QWEN_SYSTEM,
        "<Instruct>: {instruction}\n<Query>: {prompt}\n<Document>: {response}",
        QWEN_END,
    ),
    "instruction": QWEN_INSTRUCTION,
    "yes_token": "yes",
    "no_token": "no",
}
BGE_RERANKER_GEMMA: dict[str, Any] = {
    "kind": "verdict",
    "question": ("<bos>", "A: {prompt}", "\n", "B: {response}", "\n", BGE_PROMPT),
    "yes_token": "Yes",
}

_TEXT = (
    "The capital of France is Paris.\nB: Rome is the capital of Italy.\nGiven a query",
    "How do I boil an egg?\nB: Put it into hot water for eight minutes.\nGiven a query",
    "A: What is 12 + 30?\nB: It is 42.\nGiven a query A and a passage B, either 'Yes' or 'No'.",
    QWEN_INSTRUCTION,
)
_ANSWERS = ("yes", "no", "Yes", "No")


def _words(
    rules: Tokenizer, special: list[str], alphabet: list[str], size: int, **names: str
) -> PreTrainedTokenizerFast:
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    rules.train_from_iterator((*_TEXT, *_TEXT, *_ANSWERS * 20), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=rules, model_max_length=512, **names)


def qwen_words() -> PreTrainedTokenizerFast:
    """A small tokenizer by the rules of Qwen3's: byte-level, cut by its pattern, without BOS."""
    rules = Tokenizer(models.BPE())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    rules.normalizer = normalizers.NFC()
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rules.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = _words(rules, special, alphabet, 480, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    words.add_tokens(["<think>", "</think>"])
    return words


def gemma_words() -> PreTrainedTokenizerFast:
    """A small tokenizer by the rules of Gemma's: no cut but at spaces, and a BOS before a text."""
    rules = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    rules.normalizer = normalizers.Replace(" ", "▁")
    rules.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    rules.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = _words(
        rules,
        special,
        [],
        600,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return words


def qwen3_reranker(folder: Path, *, tied: bool = True, manifest: bool = True) -> Path:
    """Qwen3-Reranker: the 0.6B and 4B tie head and embedding, the 8B does not."""
    words = qwen_words()
    tiny_checkpoint(
        folder,
        "qwen3",
        causal_lm=True,
        tokenizer=False,
        max_positions=512,
        vocab_size=len(words) + 7,  # rows without a token, as the published embedding has
        tie_word_embeddings=tied,
    )
    words.save_pretrained(folder)
    if manifest:
        Manifest(**QWEN3_RERANKER).write(folder)
    return folder


def bge_reranker_gemma(folder: Path) -> Path:
    """bge-reranker-v2-gemma: Gemma 2B's one key head, a tied head, BOS written by its own code."""
    words = gemma_words()
    tiny_checkpoint(
        folder,
        "gemma",
        causal_lm=True,
        tokenizer=False,
        max_positions=512,
        vocab_size=len(words),
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    words.save_pretrained(folder)
    Manifest(**BGE_RERANKER_GEMMA).write(folder)
    return folder


@cache
def _plain(folder: Path) -> tuple[PreTrainedTokenizerFast, Any]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return PreTrainedTokenizerFast.from_pretrained(folder), model.eval()


@torch.no_grad()
def _last_logits(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits.double()


def qwen3_ids(
    folder: Path, query: str, document: str, instruction: str = QWEN_INSTRUCTION
) -> list[int]:
    """The tokens that the model card makes of a pair."""
    words, _ = _plain(folder)
    middle = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    before, after = (words.encode(t, add_special_tokens=False) for t in (QWEN_SYSTEM, QWEN_END))
    return [*before, *words(middle)["input_ids"], *after]


def qwen3_log_probabilities(folder: Path, ids: list[int]) -> tuple[float, float]:
    """log p of "yes" and of "no" among the two, as the model card computes them."""
    words, model = _plain(folder)
    logits = _last_logits(model, ids)
    yes, no = (words.convert_tokens_to_ids(text) for text in ("yes", "no"))
    found = torch.log_softmax(torch.stack([logits[no], logits[yes]]), dim=0)
    return float(found[1]), float(found[0])


def bge_ids(folder: Path, query: str, passage: str) -> list[int]:
    """The tokens that FlagEmbedding makes of a pair, short of its limits of length."""
    words, _ = _plain(folder)
    a, b, line, prompt = (
        words(text, add_special_tokens=False)["input_ids"]
        for text in (f"A: {query}", f"B: {passage}", "\n", BGE_PROMPT)
    )
    assert words.bos_token_id is not None
    return [words.bos_token_id, *a, *line, *b, *line, *prompt]


def bge_score(folder: Path, ids: list[int]) -> float:
    """The logit of "Yes"."""
    words, model = _plain(folder)
    return float(_last_logits(model, ids)[words("Yes", add_special_tokens=False)["input_ids"][0]])
