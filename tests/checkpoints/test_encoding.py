"""Tokens are those of plain `transformers`, and of TRL, for every form of prompt."""

from __future__ import annotations

import functools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.conversations import conversation
from tests.support.tiny import (
    BOS,
    CHATML,
    EOS,
    STEP,
    TURN_END,
    give_token_types,
    tiny_checkpoint,
    tiny_tokenizer,
)
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from guerdon.data import Conversation
from guerdon.models import Manifest, resolve_model
from guerdon.reward.checkpoints.checkpoint import inspect_checkpoint
from guerdon.reward.encoding.encoder import Encoder
from guerdon.reward.types import EncodedItem, FormattedText, ScoreItem, Truncation
from guerdon.serving.errors import InvalidRequest

pytestmark = pytest.mark.filterwarnings(
    # DeBERTa scripts its attention when transformers imports it; torch deprecates that.
    "ignore:`torch.jit:DeprecationWarning"
)

QUESTION = conversation(("system", "Be brief."), ("user", "What is the capital of France?"))
ANSWERS = ("Paris.", "", "It is Paris, I think.\n", "It is <|im_end|> Paris 🙂", " leading")
TEXTS = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"), st.sampled_from(" \n\t<|>_"), st.sampled_from("aeiou'")
    ),
    max_size=40,
) | st.sampled_from(
    [BOS, EOS, STEP, "<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|im"]
)
MIXED = st.lists(TEXTS, max_size=5).map("".join)


def whole(item: EncodedItem) -> list[list[int]]:
    """The full sequence of each response."""
    return [[*item.prefix.tolist(), *suffix.tolist()] for suffix in item.suffixes]


def encode(
    encoder: Encoder, prompt: Any, *responses: Any, truncation: Truncation = Truncation.REJECT
) -> EncodedItem:
    return encoder.encode(ScoreItem(prompt, responses), truncation)


def turns(asked: Conversation, answer: str) -> list[Any]:
    return [*asked.messages, {"role": "assistant", "content": answer}]


@functools.cache
def made(
    name: str,
    architecture: str = "llama",
    template: str | None = CHATML,
    longest: int = 256,
) -> Path:
    folder = Path(made.base) / name  # type: ignore[attr-defined]
    return tiny_checkpoint(folder, architecture, chat_template=template, max_positions=longest)


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> None:
    made.base = tmp_path_factory.mktemp("made")  # type: ignore[attr-defined]
    made.cache_clear()


def tiny(
    name: str = "llama",
    architecture: str = "llama",
    template: str | None = CHATML,
    longest: int = 256,
) -> Encoder:
    return Encoder(inspect_checkpoint(made(name, architecture, template, longest)))


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """SmolLM2's real tokenizer and template on a tiny model."""
    folder = tmp_path_factory.mktemp("smollm")
    tiny_checkpoint(folder, "llama", vocab_size=49152, tokenizer=False, max_positions=8192)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model("smollm2-135m-instruct") / name, folder / name)
    return Encoder(inspect_checkpoint(folder))


def test_conversations_are_what_apply_chat_template_gives(smollm: Encoder) -> None:
    for encoder in (smollm, tiny()):
        tokenizer = encoder._tokenizer
        item = encode(encoder, QUESTION, *ANSWERS)
        assert whole(item) == [
            tokenizer.apply_chat_template(turns(QUESTION, answer))["input_ids"]
            for answer in ANSWERS
        ]
        assert len(item.prefix) > 10
        assert item.truncated == (0,) * len(ANSWERS)
        assert item.readout == item.token_types == ()


def test_conversations_are_what_trl_trains_on(tmp_path: Path) -> None:
    folder = made("llama")
    chosen, rejected = ANSWERS[2], ANSWERS[3]
    rows = [{"chosen": turns(QUESTION, chosen), "rejected": turns(QUESTION, rejected)}] * 2
    from transformers import AutoModelForSequenceClassification

    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        args=RewardConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_list(rows),
    )
    trained = trainer.train_dataset[0]
    assert whole(encode(tiny(), QUESTION, chosen, rejected)) == [
        trained["chosen_ids"],
        trained["rejected_ids"],
    ]


def test_text_is_one_user_turn_with_a_template(smollm: Encoder) -> None:
    asked = encode(smollm, "What?", *ANSWERS)
    assert whole(asked) == whole(encode(smollm, conversation(("user", "What?")), *ANSWERS))


def test_formatted_text_is_taken_as_it_stands(smollm: Encoder) -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    item = encode(smollm, FormattedText(prompt), *ANSWERS)
    expected = [
        smollm._tokenizer(prompt + a, add_special_tokens=False)["input_ids"] for a in ANSWERS
    ]
    assert whole(item) == expected


def test_text_without_a_template_gets_the_tokenizers_own_tokens(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "gpt2", chat_template=None)
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    rules.save(str(folder / "tokenizer.json"))
    encoder = Encoder(inspect_checkpoint(folder))
    plain = AutoTokenizer.from_pretrained(folder)
    item = encode(encoder, "Question? ", "yes", "no")
    assert whole(item) == [plain("Question? yes")["input_ids"], plain("Question? no")["input_ids"]]
    assert item.prefix[0] == 0
    with pytest.raises(InvalidRequest, match=r"prompt\.text: begins with more than 1 BOS"):
        encode(encoder, f"{BOS}Question? ", "yes")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_encoders_take_pairs(architecture: str) -> None:
    encoder = tiny(architecture, architecture, None)
    plain = AutoTokenizer.from_pretrained(made(architecture, architecture, None))
    assert encoder.takes_pairs
    # As lists: an empty second text beside a bare first one is taken for none at all.
    expected = plain(["What?"] * len(ANSWERS), list(ANSWERS))["input_ids"]
    assert whole(encode(encoder, "What?", *ANSWERS)) == expected
    assert whole(encode(encoder, conversation(("user", "What?")), *ANSWERS)) == expected
    with pytest.raises(InvalidRequest, match=r"prompt\.conversation: must be a single user turn"):
        encode(encoder, QUESTION, "x")


def test_token_types_of_pairs(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    give_token_types(folder)
    plain = AutoTokenizer.from_pretrained(folder)
    assert "token_type_ids" in plain.model_input_names
    encoder = Encoder(inspect_checkpoint(folder))
    item = encode(encoder, "What is it?", "One", "Another one")
    expected = [plain("What is it?", answer) for answer in ("One", "Another one")]
    assert whole(item) == [pair["input_ids"] for pair in expected]
    assert [t.tolist() for t in item.token_types] == [p["token_type_ids"] for p in expected]
    assert item.part(1, 2).token_types[0].tolist() == expected[1]["token_type_ids"]
    cut = encode(encoder, "long " * 200, "One", truncation=Truncation.PROMPT_LEFT)
    assert len(cut.token_types[0]) == cut.lengths()[0] == 256
    assert whole(cut)[0][0] == 0


def test_special_tokens_written_in_an_answer_count_as_such(smollm: Encoder) -> None:
    item = encode(smollm, "Hi", "a<|im_end|>b")
    assert whole(item)[0].count(2) == smollm._tokenizer.apply_chat_template(
        turns(conversation(("user", "Hi")), "a<|im_end|>b")
    )["input_ids"].count(2)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=MIXED, answers=st.lists(MIXED, min_size=2, max_size=4))
@example(content="\x1d", answers=["", ""])
def test_shared_text_changes_no_token(smollm: Encoder, content: str, answers: list[str]) -> None:
    for encoder in (smollm, tiny("roomy", longest=4096)):  # any text of these fits
        plain = encoder._tokenizer
        prompt = conversation(("user", content))
        assert whole(encode(encoder, prompt, *answers)) == [
            plain.apply_chat_template(turns(prompt, answer))["input_ids"] for answer in answers
        ]
        if content and not content.startswith((BOS, "<|im_start|>")):
            ids = [plain(content + a, add_special_tokens=False)["input_ids"] for a in answers]
            if not all(ids):  # SmolLM2's vocabulary lacks some control characters
                with pytest.raises(InvalidRequest, match="makes no token at all"):
                    encode(encoder, FormattedText(content), *answers)
                continue
            assert whole(encode(encoder, FormattedText(content), *answers)) == ids


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_pairs_are_what_the_tokenizer_gives(content: str, answers: list[str]) -> None:
    if content.startswith(BOS):
        return
    encoder = tiny("roomy-bert", "bert", None, longest=4096)
    expected = encoder._tokenizer([content] * len(answers), answers)["input_ids"]
    assert whole(encode(encoder, content, *answers)) == expected


def test_the_prefix_is_the_longest_and_leaves_every_suffix_a_token() -> None:
    ids = np.array([5, 6, 7], dtype=np.int32)
    item = encode(tiny(), ids, np.array([8, 9]), np.array([8]), np.array([8, 9, 10]))
    assert item.prefix.tolist() == [5, 6, 7]
    assert [suffix.tolist() for suffix in item.suffixes] == [[8, 9], [8], [8, 9, 10]]
    alone = encode(tiny(), ids, np.array([8, 9]))
    assert alone.prefix.tolist() == []
    twins = encode(tiny(), "a", "same", "same")
    assert [len(suffix) for suffix in twins.suffixes] == [1, 1]


VOCABULARY = len(tiny_tokenizer())
IDS = np.array([5, 6], dtype=np.int32)


@pytest.mark.parametrize(
    ("prompt", "responses", "field"),
    [
        ("hi", (), "responses"),
        (conversation(), ("a",), "prompt.conversation.messages"),
        (np.array([], dtype=np.int32), (IDS,), "prompt.token_ids"),
        (IDS, (IDS, np.array([], dtype=np.int32)), "responses[1].token_ids"),
        (IDS, ("text",), "responses[0].text"),
        ("text", ("a", IDS), "responses[1].token_ids"),
        (QUESTION, (IDS,), "responses[0].token_ids"),
        (np.array([5, -1]), (IDS,), "prompt.token_ids.ids[1]"),
        (np.array([VOCABULARY]), (IDS,), "prompt.token_ids.ids[0]"),
        (IDS, (np.array([0, 2**31]),), "responses[0].token_ids.ids[1]"),
        (np.array([0, 0, 5]), (IDS,), "prompt.token_ids"),
        (FormattedText(f"{BOS}{BOS}a"), ("b",), "prompt.formatted_text"),
        (FormattedText(""), ("",), "responses[0]"),
        ("\ud800", ("a",), "prompt.text"),
        ("a", ("b", "x\udfffy"), "responses[1].text"),
        (FormattedText("\udc00"), ("b",), "prompt.formatted_text"),
        (conversation(("user", "\ud800")), ("b",), "prompt.conversation.messages[0].content"),
        (conversation(("\ud800", "")), ("b",), "prompt.conversation.messages[0].role"),
        ("a", ("word " * 300,), "responses[0]"),
    ],
)
def test_a_wrong_field_is_named(prompt: Any, responses: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tiny().encode(ScoreItem(prompt, responses), Truncation.REJECT)
    assert caught.value.field == field


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    )
    encoder = Encoder(
        inspect_checkpoint(tiny_checkpoint(tmp_path, "llama", chat_template=template + CHATML))
    )
    with pytest.raises(InvalidRequest, match=r"prompt\.conversation: .*user first"):
        encode(encoder, QUESTION, "a")
    assert encode(encoder, Conversation(QUESTION.messages[1:]), "a").sequences == 1


def test_a_conversation_needs_a_template() -> None:
    encoder = tiny("bare", "llama", None)
    assert encoder.template_hash == ""
    with pytest.raises(InvalidRequest, match="no chat template"):
        encode(encoder, QUESTION, "a")


def test_a_template_with_bos_gives_one_bos(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", chat_template="{{ bos_token }}" + CHATML)
    encoder = Encoder(inspect_checkpoint(folder))
    assert whole(encode(encoder, QUESTION, "a"))[0][:2] == [0, 4]
    Manifest(double_bos=True).write(folder)
    twice = Encoder(inspect_checkpoint(folder))
    assert whole(encode(twice, QUESTION, "a"))[0][:3] == [0, 0, 4]
    assert encode(twice, np.array([0, 0, 5]), IDS).sequences == 1
    with pytest.raises(InvalidRequest, match="more than 2 BOS"):
        encode(twice, np.array([0, 0, 0]), IDS)


def test_a_long_prompt_is_cut_from_the_left_on_request() -> None:
    encoder = tiny()
    prompt, answers = conversation(("user", "many words " * 60)), ("short", "a longer answer " * 5)
    full = [encoder._tokenizer.apply_chat_template(turns(prompt, a))["input_ids"] for a in answers]
    with pytest.raises(InvalidRequest, match=rf"{len(full[0])} tokens, and the model takes 256"):
        encode(encoder, prompt, *answers)
    item = encode(encoder, prompt, *answers, truncation=Truncation.PROMPT_LEFT)
    assert item.lengths() == [256, 256]
    assert list(item.truncated) == [len(ids) - 256 for ids in full]
    assert whole(item) == [ids[-256:] for ids in full]


def test_a_leading_bos_survives_truncation(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", chat_template="{{ bos_token }}" + CHATML)
    encoder = Encoder(inspect_checkpoint(folder))
    prompt = conversation(("user", "many words " * 60))
    item = encode(encoder, prompt, "short", truncation=Truncation.PROMPT_LEFT)
    full = encoder._tokenizer.apply_chat_template(turns(prompt, "short"))["input_ids"]
    assert whole(item)[0] == [0, *full[-255:]]


@pytest.mark.parametrize("form", ["conversation", "formatted", "ids", "pair"])
def test_a_response_is_never_cut(form: str) -> None:
    encoder = tiny("bert", "bert", None) if form == "pair" else tiny()
    prompts: dict[str, Any] = {
        "conversation": QUESTION,
        "formatted": FormattedText("some text "),
        "ids": IDS,
        "pair": "some text",
    }
    response: Any = np.full(257, 9) if form == "ids" else "\n\n.x" * 100
    with pytest.raises(InvalidRequest, match=r"responses\[0\]: is too long even without"):
        encode(encoder, prompts[form], response, truncation=Truncation.PROMPT_LEFT)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(answer=TEXTS.filter(bool), filler=st.integers(200, 260))
def test_truncation_keeps_the_whole_response(answer: str, filler: int) -> None:
    encoder = tiny()
    prompt = conversation(("user", "x\n" * filler))
    item = encode(encoder, prompt, answer, truncation=Truncation.PROMPT_LEFT)
    kept = encoder._tokenizer.decode(whole(item)[0])
    assert kept.endswith(f"{answer}{TURN_END}\n")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("process"), "llama", token_classification=True)
    Manifest(kind="process", step_marker=STEP).write(folder)
    return Encoder(inspect_checkpoint(folder))


def test_step_markers_of_the_response_and_only_there(process: Encoder) -> None:
    marker = process._tokenizer.convert_tokens_to_ids(STEP)
    prompt = conversation(("user", f"Solve it.{STEP} Step by step."))
    item = encode(process, prompt, f"One.{STEP}Two.{STEP}", f"One.{STEP}")
    for ids, places, count in zip(whole(item), item.readout, (2, 1), strict=True):
        assert len(places) == count
        assert all(ids[place] == marker for place in places)
        assert ids.count(marker) == count + 1
    with pytest.raises(InvalidRequest, match=r"responses\[1\]: has no step marker"):
        encode(process, prompt, f"One.{STEP}", "One.")


def test_step_markers_after_truncation(process: Encoder) -> None:
    marker = process._tokenizer.convert_tokens_to_ids(STEP)
    prompt = conversation(("user", f"words {STEP}" * 100))
    item = encode(
        process, prompt, f"One.{STEP}Two.{STEP}", f"Uno.{STEP}", truncation=Truncation.PROMPT_LEFT
    )
    assert [len(places) for places in item.readout] == [2, 1]
    for ids, places in zip(whole(item), item.readout, strict=True):
        assert all(ids[place] == marker for place in places)
        assert places[-1] == len(ids) - 3  # then come the end of the turn and a line break


def test_step_markers_among_ids(process: Encoder) -> None:
    marker = process._tokenizer.convert_tokens_to_ids(STEP)
    item = encode(process, np.array([9, marker]), np.array([7, marker, 8, marker]))
    assert item.readout[0].tolist() == [3, 5]


def test_a_marker_swallowed_by_a_longer_token_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", token_classification=True)
    Manifest(kind="process", step_marker="is").write(folder)
    encoder = Encoder(inspect_checkpoint(folder))
    assert len(encode(encoder, "a", "is it").readout[0]) == 1
    with pytest.raises(InvalidRequest, match=r"2 step markers .* 1 of them"):
        encode(encoder, "a", "is is")


def test_a_marker_of_the_prompt_that_reaches_into_the_response_is_no_step(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", token_classification=True)
    Manifest(kind="process", step_marker=STEP).write(folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    for token in rules["added_tokens"]:
        token["rstrip"] = token["content"] == STEP
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    encoder = Encoder(inspect_checkpoint(folder))
    prompt = FormattedText(f"Solve it.{STEP}")
    assert len(encode(encoder, prompt, f"One.{STEP} Two.{STEP}").readout[0]) == 2
    for response in (" no step at all", f" One.{STEP}"):
        with pytest.raises(InvalidRequest, match="step markers"):
            encode(encoder, prompt, response)


def test_a_template_that_marks_the_steps_itself(tmp_path: Path) -> None:
    template = CHATML.replace("message['content'] +", f"message['content'] + '{STEP}' +")
    folder = tiny_checkpoint(tmp_path, "llama", token_classification=True, chat_template=template)
    Manifest(kind="process", step_marker=STEP).write(folder)
    item = encode(Encoder(inspect_checkpoint(folder)), QUESTION, "Paris.")
    assert len(item.readout[0]) == 1


def test_truncation_of_a_pair_keeps_its_separators() -> None:
    encoder = tiny("bert", "bert", None)
    full = encoder._tokenizer("many words " * 60, "An answer.")["input_ids"]
    item = encode(encoder, "many words " * 60, "An answer.", truncation=Truncation.PROMPT_LEFT)
    assert whole(item) == [[0, *full[-255:]]]
    assert whole(item)[0].count(2) == 2


def test_added_tokens_that_eat_white_space_are_not_cut_at(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", vocab_size=400)
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    greedy = AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False)
    longer = AddedToken("<tool><|im_start|>", normalized=False)
    tokenizer.add_tokens([greedy, longer, AddedToken("im", single_word=True, normalized=False)])
    tokenizer.save_pretrained(folder)
    encoder = Encoder(inspect_checkpoint(folder))
    answers = ("a <tool> b", "a <tool><|im_start|> c", "a <tool>", "a im b", "a <tool><|im_start")
    for prompt in ("x <tool> y", "x <tool>", "<tool> im", "<tool><|im_start|>"):
        expected = [
            encoder._tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
            for answer in answers
        ]
        assert whole(encode(encoder, FormattedText(prompt), *answers)) == expected


def test_threads_agree(smollm: Encoder) -> None:
    items = [
        ScoreItem(conversation(("user", f"Question {n} " * (n % 7 + 1))), (f"Answer {n}", "x" * n))
        for n in range(64)
    ]
    alone = [whole(smollm.encode(item, Truncation.REJECT)) for item in items]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda item: whole(smollm.encode(item, Truncation.REJECT)), items * 4)
        assert list(together) == alone * 4


def test_a_truncation_saved_with_the_tokenizer_is_not_applied(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    rules = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rules.enable_truncation(8)
    rules.enable_padding(length=64)
    rules.save(str(folder / "tokenizer.json"))
    encoder = Encoder(inspect_checkpoint(folder))
    assert whole(encode(encoder, QUESTION, "Paris")) == whole(encode(tiny(), QUESTION, "Paris"))


def test_a_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens(["<extra>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    encoder = Encoder(inspect_checkpoint(folder))
    assert encode(encoder, "a", "b").sequences == 1
    with pytest.raises(InvalidRequest, match="no embedding"):
        encode(encoder, "a", "b <extra>")


def test_a_very_long_text_is_refused_not_cut(smollm: Encoder) -> None:
    with pytest.raises(InvalidRequest, match="8192 tokens that the model takes"):
        encode(smollm, "a", "word " * 200_000)
