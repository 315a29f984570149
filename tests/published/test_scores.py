"""Published models score as their published formulas say, packed and with shared prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints.support import edit_json
from tests.published.checkpoints import (
    EOT,
    EXTRA,
    PUBLISHED,
    REWARD,
    internlm2,
    skywork_llama,
    skywork_qwen3,
)
from tests.published.formulas import Formula, rendered_ids
from tests.support.conversations import conversation
from transformers import PreTrainedTokenizerFast

from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import (
    ComputeMode,
    EncodedItem,
    FormattedText,
    ModelKind,
    ResponseScore,
    RewardModel,
    ScoreItem,
    Truncation,
)
from guerdon.serving.errors import InvalidRequest

TOLERANCE = 1e-4

PROMPTS = (
    conversation(("user", "What is 12 + 30?")),
    conversation(
        ("user", "How do I boil an egg?"),
        ("assistant", "Put it into hot water."),
        ("user", "For how long, to have it soft?"),
    ),
)
ANSWERS = ("It is 42.", "First the tens, then the ones: 42, of course.", "I am sorry, I can't.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("published")

    def make(name: str) -> Path:
        return root / name if (root / name).exists() else PUBLISHED[name](root / name)

    return make


@pytest.fixture(scope="module")
def model(folder: Callable[[str], Path]) -> Callable[[str], RewardModel]:
    loaded: dict[str, RewardModel] = {}

    def load(name: str) -> RewardModel:
        if name not in loaded:
            loaded[name] = load_model(folder(name), name=name, settings=EngineSettings())
        return loaded[name]

    return load


def items(model: RewardModel, answers: tuple[str, ...] = ANSWERS) -> list[EncodedItem]:
    """Every prompt with all answers, and once more with one."""
    asked = [ScoreItem(prompt, answers) for prompt in PROMPTS]
    asked += [ScoreItem(prompt, answers[1:2]) for prompt in PROMPTS]
    return [model.encode(item, Truncation.REJECT) for item in asked]


def sequences(folder: Path, answers: tuple[str, ...] = ANSWERS) -> list[list[int]]:
    """The same conversations by the folder's tokenizer alone, in the same order."""
    pairs = [(prompt, answer) for prompt in PROMPTS for answer in answers]
    pairs += [(prompt, answers[1]) for prompt in PROMPTS]
    return [
        rendered_ids(
            folder,
            [*prompt.messages, {"role": "assistant", "content": answer}],
        )
        for prompt, answer in pairs
    ]


def flat(model: RewardModel, batch: list[EncodedItem]) -> list[ResponseScore]:
    return [score for row in model.score(batch).items for score in row]


def token_ids(folder: Path, text: str) -> list[int]:
    found = PreTrainedTokenizerFast.from_pretrained(folder)(text, add_special_tokens=False)
    return list(found["input_ids"])


def distinct(values: list[float]) -> bool:
    """A test that compares scores sees a fault only if the scores differ."""
    return float(np.std(values)) > 0.05


@pytest.mark.parametrize(
    "name", ["skywork_llama", "skywork_qwen3", "qwen_rm", "inf_orm", "internlm2"]
)
def test_one_number(
    name: str, folder: Callable[[str], Path], model: Callable[[str], RewardModel]
) -> None:
    padded = load_model(folder(name), name=name, settings=EngineSettings(mode="padded"))
    formula = Formula(folder(name))
    wanted = [
        formula.last(ids + token_ids(folder(name), REWARD) if name == "internlm2" else ids)
        for ids in sequences(folder(name))
    ]
    found = flat(model(name), items(model(name)))
    assert model(name).info.compute_mode is ComputeMode.PACKED
    assert model(name).info.kind is ModelKind.SEQUENCE
    assert sum(score.reused_tokens for score in found) > 0
    assert distinct(wanted)
    np.testing.assert_allclose([s.score for s in found], wanted, atol=TOLERANCE)
    alone = flat(padded, items(padded))
    np.testing.assert_allclose([s.score for s in alone], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("make", [skywork_llama, skywork_qwen3])
def test_a_padding_token_that_ends_sequences_changes_nothing(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    """pad = eos: the last token is still the last one, and the first "pad" is no end."""
    path = make(tmp_path / "m")
    (end,) = token_ids(path, EOT if make is skywork_llama else "<|im_end|>")
    edit_json(path / "config.json", pad_token_id=end)
    loaded = load_model(path, name="m", settings=EngineSettings())
    wanted = [Formula(path).last(ids) for ids in sequences(path)]
    np.testing.assert_allclose(
        [s.score for s in flat(loaded, items(loaded))], wanted, atol=TOLERANCE
    )


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_step_scores_are_log_odds_of_the_published_probability(
    mode: str, folder: Callable[[str], Path]
) -> None:
    loaded = load_model(folder("qwen_prm"), name="m", settings=EngineSettings(mode=mode))
    answers = tuple(text.replace(".", f".{EXTRA}").replace(",", f",{EXTRA}", 1) for text in ANSWERS)
    (marker,) = token_ids(folder("qwen_prm"), EXTRA)
    formula = Formula(folder("qwen_prm"))
    found = flat(loaded, items(loaded, answers))
    assert loaded.info.compute_mode.value == mode
    assert loaded.info.step_aggregation == "min"
    for score, ids in zip(found, sequences(folder("qwen_prm"), answers), strict=True):
        wanted = formula.step_probabilities(ids, marker)
        steps = np.array([step.score for step in score.steps])
        np.testing.assert_allclose(1 / (1 + np.exp(-steps)), wanted, atol=TOLERANCE)
        assert score.score == steps.min()
    assert any(len(score.steps) > 1 for score in found)


@pytest.mark.parametrize("mode", ["packed", "padded"])
@pytest.mark.parametrize("name", ["armorm", "qrm", "urm"])
def test_attributes(
    name: str,
    mode: str,
    folder: Callable[[str], Path],
    model: Callable[[str], RewardModel],
) -> None:
    path = folder(name)
    formula, pattern = Formula(path), token_ids(path, PATTERN)
    loaded = model(name)
    if mode == "padded":
        loaded = load_model(path, name=name, settings=EngineSettings(mode="padded"))
    wanted = [
        formula.weighted_means(ids) if name == "urm" else formula.gated(ids, pattern)
        for ids in sequences(path)
    ]
    found = flat(loaded, items(loaded))
    assert loaded.info.compute_mode.value == mode
    assert loaded.info.kind is ModelKind.ATTRIBUTES
    assert len(loaded.info.attributes) == (5 if name == "urm" else 19)
    assert loaded.info.attributes[1].name == "helpsteer-correctness"
    assert distinct([score for score, _ in wanted])
    np.testing.assert_allclose([s.score for s in found], [w for w, _ in wanted], atol=TOLERANCE)
    np.testing.assert_allclose(
        [s.attributes for s in found], [values for _, values in wanted], atol=TOLERANCE
    )


PATTERN = f"{EOT}<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_the_gate_reads_the_prompt_that_is_computed_once(
    folder: Callable[[str], Path], model: Callable[[str], RewardModel]
) -> None:
    loaded, pattern = model("armorm"), token_ids(folder("armorm"), PATTERN)
    item = loaded.encode(ScoreItem(PROMPTS[1], ANSWERS), Truncation.REJECT)
    places = {int(gate[0]) for gate in item.readout}
    assert len(places) == 1
    place = places.pop()
    assert place < len(item.prefix), "the gate is in the shared prompt"
    assert item.prefix[place : place + len(pattern)].tolist() == pattern
    # Another prompt gives other weights to the same answer's attributes.
    formula = Formula(folder("armorm"))
    ratios = []
    for ids in sequences(folder("armorm"))[::3]:
        score, values = formula.gated(ids, pattern)
        ratios.append(score / sum(values))
    assert distinct(ratios)


def test_the_gate_reads_the_last_turn_that_is_written(
    folder: Callable[[str], Path], model: Callable[[str], RewardModel]
) -> None:
    """As the published code does, even where an answer holds a turn of its own."""
    path, loaded = folder("qrm"), model("qrm")
    answer = f"Yes.{PATTERN}No."
    item = loaded.encode(ScoreItem(PROMPTS[0], ("Yes.", answer)), Truncation.REJECT)
    assert item.readout[0][0] < len(item.prefix) <= item.readout[1][0]
    ids = rendered_ids(
        path,
        [
            PROMPTS[0].messages[0],
            {"role": "assistant", "content": answer},
        ],
    )
    wanted, _ = Formula(path).gated(ids, token_ids(path, PATTERN))
    assert flat(loaded, [item])[1].score == pytest.approx(wanted, abs=TOLERANCE)


def test_a_text_without_a_turn_has_no_gate(model: Callable[[str], RewardModel]) -> None:
    with pytest.raises(InvalidRequest, match="send a conversation") as refused:
        model("armorm").encode(ScoreItem(FormattedText("12 + 30 = "), ("42",)), Truncation.REJECT)
    assert refused.value.field == "prompt.formatted_text"


def test_a_prompt_cut_from_the_left_keeps_its_gate(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from guerdon.models import Manifest

    path = PUBLISHED["armorm"](tmp_path / "m")
    Manifest(max_tokens=40).write(path)
    loaded = load_model(path, name="m", settings=EngineSettings())
    item = loaded.encode(ScoreItem(PROMPTS[1], ANSWERS[:2]), Truncation.PROMPT_LEFT)
    assert min(item.truncated) > 0
    wanted = [
        Formula(path).gated(np.concatenate([item.prefix, s]).tolist(), token_ids(path, PATTERN))[0]
        for s in item.suffixes
    ]
    np.testing.assert_allclose([s.score for s in flat(loaded, [item])], wanted, atol=TOLERANCE)


def test_the_reward_token_is_added_once(
    folder: Callable[[str], Path], model: Callable[[str], RewardModel]
) -> None:
    loaded = model("internlm2")
    (reward,) = token_ids(folder("internlm2"), REWARD)
    prompt = np.array([20, 21, 22], dtype=np.int32)
    responses = (np.array([23], dtype=np.int32), np.array([23, reward], dtype=np.int32))
    item = loaded.encode(ScoreItem(prompt, responses), Truncation.REJECT)
    assert [len(suffix) + len(item.prefix) for suffix in item.suffixes] == [5, 5]
    with_it, without = (score.score for score in flat(loaded, [item]))
    assert with_it == pytest.approx(without, abs=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"bias": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ],
    ids=["bias", "linear", "dynamic"],
)
def test_other_configs_of_internlm2(tmp_path: Path, config: dict[str, object]) -> None:
    path = internlm2(tmp_path / "m", **config)
    loaded = load_model(path, name="m", settings=EngineSettings())
    reward = token_ids(path, REWARD)
    wanted = [Formula(path).last(ids + reward) for ids in sequences(path)]
    np.testing.assert_allclose(
        [s.score for s in flat(loaded, items(loaded))], wanted, atol=TOLERANCE
    )


@pytest.mark.parametrize("name", ["armorm", "qrm", "internlm2"])
def test_heads_stay_in_float32_in_half_precision(name: str, folder: Callable[[str], Path]) -> None:
    loaded = load_model(folder(name), name=name, settings=EngineSettings(dtype="bfloat16"))
    assert loaded.info.dtype == "bfloat16"
    assert loaded.info.compute_mode is ComputeMode.PACKED
    assert np.isfinite([score.score for score in flat(loaded, items(loaded))]).all()
