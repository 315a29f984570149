"""A checkpoint's texts become the tokens that it was trained on, whatever transformers does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from tests.checkpoints.support import edit_json
from tests.support import hub
from tests.support.tiny import TEXT
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.checkpoints.tokenizer import read_tokenizer
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import ComputeMode, ScoreItem, Truncation
from guerdon.serving.errors import CheckpointRefused

QUESTION = "How do I boil an egg?\nIn ½ a minute…"
ANSWERS = ("Put it into  hot water.", "ﬁrst\n\nadd the ones", "ＮＯ", "")


def scores(folder: Path) -> tuple[list[float], int]:
    """Through the public door: the scores of `ANSWERS` to `QUESTION`, and the longest sequence."""
    model = load_model(folder, name="m", settings=EngineSettings())
    assert model.info.compute_mode is ComputeMode.PADDED
    encoded = model.encode(ScoreItem(QUESTION, ANSWERS), Truncation.REJECT)
    return [score.score for score in model.score([encoded]).items[0]], model.info.max_tokens


def reference(folder: Path, ids: list[list[int]]) -> list[float]:
    from transformers import DebertaV2ForSequenceClassification

    model = DebertaV2ForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits) for row in ids]


def test_the_rules_are_those_of_tokenizer_json(tmp_path: Path) -> None:
    """OpenAssistant's folder: question and answer as a pair, by the rules of training."""
    folder = hub.open_assistant(tmp_path)
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [saved.encode(QUESTION, answer).ids for answer in ANSWERS]
    today = AutoTokenizer.from_pretrained(folder)
    assert today([QUESTION], [ANSWERS[1]])["input_ids"][0] != ids[1], "nothing is tested"
    found, longest = scores(folder)
    np.testing.assert_allclose(found, reference(folder, ids), atol=1e-4)
    assert longest == 512
    assert np.ptp(found) > 0.5


def test_a_sentencepiece_model_will_do(tmp_path: Path) -> None:
    """A folder with spm.model alone: the tokens are those of SentencePiece itself."""
    folder = hub.open_assistant(tmp_path)
    pieces = spm(folder, max_pieces=hub.vocabulary(folder) - 1)
    wanted = [[1, *pieces.encode(QUESTION), 2, *pieces.encode(answer), 2] for answer in ANSWERS]
    found, longest = scores(folder)
    np.testing.assert_allclose(found, reference(folder, wanted), atol=1e-4)
    assert longest == 512
    tokenizer = inspect_checkpoint(folder).tokenizer
    assert tokenizer.mask_token_id == pieces.get_piece_size()
    assert (
        tokenizer([QUESTION], ["no"])["token_type_ids"][0].count(1) == len(pieces.encode("no")) + 1
    )


def test_added_tokens_go_where_they_were(tmp_path: Path) -> None:
    folder = hub.open_assistant(tmp_path)
    size = spm(folder, max_pieces=hub.vocabulary(folder) - 2).get_piece_size()
    added = folder / "added_tokens.json"
    added.write_text(json.dumps({"[MASK]": size, "<|x|>": size + 1}))
    tokenizer = inspect_checkpoint(folder).tokenizer
    assert tokenizer.convert_tokens_to_ids(["[MASK]", "<|x|>"]) == [size, size + 1]
    added.write_text(json.dumps({"[MASK]": size + 5}))
    with pytest.raises(CheckpointRefused, match=r"\[MASK\] should be token"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [
        ("normalizer", normalizers.Lowercase(), "THE end"),
        ("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first"), "a[MASK]end"),
    ],
)
def test_the_rules_of_the_file_are_kept(
    rule: str, value: object, text: str, tmp_path: Path
) -> None:
    folder = hub.open_assistant(tmp_path)
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    setattr(saved, rule, value)
    saved.save(str(folder / "tokenizer.json"))
    wanted = saved.encode(text, add_special_tokens=False).tokens
    assert AutoTokenizer.from_pretrained(folder).tokenize(text) != wanted, "nothing is tested"
    assert inspect_checkpoint(folder).tokenizer.tokenize(text) == wanted


def test_settings_of_the_files_model_are_kept(tmp_path: Path) -> None:
    folder = hub.open_assistant(tmp_path)
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text())
    rules["model"]["unk_id"] = 0  # DebertaV2Tokenizer takes [UNK]'s, whatever the file says
    file.write_text(json.dumps(rules))
    assert read_tokenizer(folder)("東", add_special_tokens=False)["input_ids"][-1] == 0
    assert AutoTokenizer.from_pretrained(folder)("東", add_special_tokens=False)["input_ids"][-1]


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3(folder: Path, name: str) -> Tokenizer:
    """Llama 3's rules in a folder that says another class, and what they make of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    more = ["12", "123", "1234", "Ġab", "Ġa", "Ġabc"]
    vocab = {piece: place for place, piece in enumerate([*letters, *more])}
    merges = [("1", "2"), ("12", "3"), ("123", "4"), ("Ġ", "a"), ("Ġa", "b")]
    rules = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    rules.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rules.add_special_tokens(["<|eot_id|>"])
    rules.save(str(folder / "tokenizer.json"))
    end = "<|eot_id|>"
    settings = {"tokenizer_class": name, "bos_token": end, "eos_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return rules


@pytest.mark.parametrize("name", ["GPT2TokenizerFast", "LlamaTokenizerFast", "Qwen2TokenizerFast"])
def test_rules_that_matter_to_few_texts_are_kept(name: str, tmp_path: Path) -> None:
    saved = llama_3(tmp_path, name)
    tokenizer = read_tokenizer(tmp_path)
    for text in ("1234 5", "x abc"):  # digits by threes; a word that no merge makes
        wanted = saved.encode(text).ids
        assert tokenizer(text)["input_ids"] == wanted
        assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] != wanted, "no test"


def bert(folder: Path, **settings: object) -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "A", "é", "e"]
    rules = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}))
    rules.normalizer = normalizers.BertNormalizer(lowercase=False)
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    rules.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return rules


def test_how_the_file_puts_two_texts_together_is_kept(tmp_path: Path) -> None:
    saved = bert(tmp_path, do_lower_case=False)
    assert read_tokenizer(tmp_path)(["A"], ["é"])["input_ids"] == [saved.encode("A", "é").ids]


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}])
def test_capitals_that_the_files_do_not_agree_on(
    settings: dict[str, object], tmp_path: Path
) -> None:
    """`transformers` 4 and 5 both take the class's word, so training may have, too."""
    bert(tmp_path, **settings)
    with pytest.raises(CheckpointRefused, match=r"contradicts itself: .* says lowercase = false"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "RobertaTokenizer", "LlamaTokenizer"])
def test_a_prefix_that_the_files_do_not_agree_on(name: str, tmp_path: Path) -> None:
    saved = llama_3(tmp_path, name)
    words = name == "LlamaTokenizer"
    if words:
        saved.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    saved.pre_tokenizer = None if words else pre_tokenizers.ByteLevel(add_prefix_space=False)
    saved.save(str(tmp_path / "tokenizer.json"))
    read_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", add_prefix_space=not words)
    with pytest.raises(CheckpointRefused, match=r"contradicts itself: .* says add_prefix_space"):
        read_tokenizer(tmp_path)


def test_tokens_that_only_the_settings_have_are_refused(tmp_path: Path) -> None:
    folder = hub.open_assistant(tmp_path)
    place = str(hub.vocabulary(folder))
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={place: ADDED})
    with pytest.raises(CheckpointRefused, match=r"other tokens than tokenizer\.json says"):
        inspect_checkpoint(folder)


ADDED = {"content": "leading", "lstrip": False, "normalized": False, "rstrip": False,
         "single_word": False, "special": False}  # fmt: skip


def test_added_tokens_are_found_by_the_files_rules(tmp_path: Path) -> None:
    folder = hub.open_assistant(tmp_path)
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.add_tokens([AddedToken("ﬁn½", normalized=True)])
    saved.save(str(folder / "tokenizer.json"))
    text = "a fin1⁄2 b"
    wanted = saved.encode(text, add_special_tokens=False).ids
    assert saved.token_to_id("ﬁn½") in wanted
    assert read_tokenizer(folder)(text, add_special_tokens=False)["input_ids"] == wanted


def test_a_broken_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    folder = hub.open_assistant(tmp_path)
    (folder / "spm.model").write_bytes(b"no model")
    assert inspect_checkpoint(folder), "tokenizer.json goes first"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointRefused, match=r"the tokenizer of .* can't be read"):
        inspect_checkpoint(folder)


def spm(folder: Path, max_pieces: int) -> sentencepiece.SentencePieceProcessor:
    """Replace tokenizer.json by a SentencePiece model of DeBERTa-v3's settings."""
    for name in ("tokenizer.json", "added_tokens.json"):
        (folder / name).unlink()
    text = folder.parent / "text.txt"
    text.write_text("\n".join(TEXT * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spm"),
        model_type="unigram",
        vocab_size=max_pieces,
        hard_vocab_limit=False,
        minloglevel=2,
        byte_fallback=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece=hub.PAD,
        bos_piece=hub.CLS,
        eos_piece=hub.SEP,
        unk_piece=hub.UNK,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
