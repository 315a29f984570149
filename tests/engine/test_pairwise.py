"""PairRM against its published formula."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support import hub
from tests.support.conversations import conversation
from tests.support.pairrm import Published

from guerdon.data import Conversation
from guerdon.models import Manifest
from guerdon.reward.encoding.comparisons import scores_of_candidates
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import (
    ComputeMode,
    FormattedText,
    ModelKind,
    RewardModel,
    ScoreItem,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused, InvalidRequest

PROMPT = "What is the capital of  France?\nSay it in ½ a line…"
ANSWERS = (
    "Paris.",
    "It is ﬁne, I think:\n\n Rome!",
    "ＰＡＲＩＳ, and the capital of Italy is Rome.",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.pairrm(tmp_path_factory.mktemp("pairrm"))


@pytest.fixture(scope="module")
def model(folder: Path) -> RewardModel:
    return load_model(folder, name="pair", settings=EngineSettings())


@pytest.fixture(scope="module")
def published(folder: Path) -> Published:
    return Published(folder)


def ranked(model: RewardModel, item: ScoreItem, truncation: Truncation = Truncation.REJECT) -> Any:
    """As the service has it: encode, compute, put together."""
    encoded = model.encode(item, truncation)
    return scores_of_candidates(encoded, model.score([encoded]).items[0])


def values(scores: Sequence[Any]) -> list[float]:
    return [score.score for score in scores]


def test_scores_are_the_published_ones(model: RewardModel, published: Published) -> None:
    assert model.info.kind is ModelKind.PAIRWISE
    assert (model.info.compute_mode, model.info.max_tokens) == (ComputeMode.PADDED, 2048)
    wanted = published.scores(PROMPT, ANSWERS)
    assert np.ptp(wanted) > 0.5, "answers must differ"
    found = ranked(model, ScoreItem(PROMPT, ANSWERS))
    np.testing.assert_allclose(values(found), wanted, atol=1e-4)
    encode = published.tokenizer.encode
    lengths = [
        len(encode(hub.MARKS[0] + PROMPT).ids) + len(encode(hub.MARKS[1] + answer).ids)
        for answer in ANSWERS
    ]
    assert [score.token_count for score in found] == lengths


def test_both_orders_count(model: RewardModel, published: Published) -> None:
    """The model is not antisymmetric, so either order alone would rank otherwise."""
    there, back = (published.margin(PROMPT, *pair) for pair in (ANSWERS[:2], ANSWERS[1::-1]))
    assert abs(there + back) > 0.05
    found = ranked(model, ScoreItem(PROMPT, ANSWERS[:2]))
    np.testing.assert_allclose(values(found), np.array([1, -1]) * (there - back) / 2, atol=1e-4)


def test_several_tasks_are_averaged(tmp_path: Path) -> None:
    folder = hub.pairrm(tmp_path, seed=3, n_tasks=2)
    model = load_model(folder, name="pair", settings=EngineSettings(deterministic=True))
    wanted = Published(folder).scores(PROMPT, ANSWERS)
    np.testing.assert_allclose(values(ranked(model, ScoreItem(PROMPT, ANSWERS))), wanted, atol=1e-4)


def test_neighbours_change_nothing(model: RewardModel, published: Published) -> None:
    """Comparisons of several items share padded batches, cut where the scheduler cuts."""
    one, other = (
        model.encode(ScoreItem(PROMPT, a), Truncation.REJECT)
        for a in (ANSWERS, ("yes", "no " * 60))
    )
    parts = model.score([one.part(0, 5), other, one.part(5, 12)]).items
    found = scores_of_candidates(one, [*parts[0], *parts[2]])
    np.testing.assert_allclose(values(found), published.scores(PROMPT, ANSWERS), atol=1e-4)


def test_a_conversation_is_written_as_in_training(model: RewardModel, published: Published) -> None:
    talk = conversation(("user", "Hi."), ("assistant", "Hello!"), ("user", "Help me?"))
    source = (
        "Finish the following coversation in each i-th turn by filling in <Response i> with your "
        "response.USER: Hi.\nAssistant: <Response 1>\nUSER: Help me?\nAssistant: <Response 2>"
    )
    written = [f"<Response 1>: Hello!\n<Response 2>: {answer}" for answer in ("Yes.", "I can't.")]
    found = ranked(model, ScoreItem(talk, ("Yes.", "I can't.")))
    np.testing.assert_allclose(values(found), published.scores(source, written), atol=1e-4)
    alone = ranked(model, ScoreItem(Conversation(talk.messages[:1]), ANSWERS))
    np.testing.assert_allclose(values(alone), published.scores("Hi.", ANSWERS), atol=1e-4)


def test_a_separator_in_a_text_is_a_space(model: RewardModel, published: Published) -> None:
    """`CrossCompareCollator` replaced it in training."""
    found = ranked(model, ScoreItem("a[SEP]b", ("yes[SEP]", "no")))
    np.testing.assert_allclose(values(found), published.scores("a b", ("yes ", "no")), atol=1e-4)


def test_the_prompt_is_cut_alike_in_all_comparisons(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    Manifest(max_tokens=60).write(tmp_path)
    model = load_model(tmp_path, name="pair", settings=EngineSettings())
    item = ScoreItem("one two three four " * 4, ("yes", "no, not at all", "perhaps"))
    with pytest.raises(
        InvalidRequest, match=r"responses\[1\]: is too long: .* and the model takes 60"
    ):
        model.encode(item, Truncation.REJECT)
    found = ranked(model, item, Truncation.PROMPT_LEFT)
    cut = found[0].truncated_tokens
    assert cut > 0
    assert {score.truncated_tokens for score in found} == {cut}
    encoded = model.encode(item, Truncation.PROMPT_LEFT)
    assert max(encoded.lengths()) == 60
    wanted = Published(tmp_path).scores(str(item.prompt), [str(r) for r in item.responses], cut)
    np.testing.assert_allclose(values(found), wanted, atol=1e-4)
    with pytest.raises(InvalidRequest, match="too long even without its prompt"):
        model.encode(ScoreItem("a", ("yes", "no " * 60)), Truncation.PROMPT_LEFT)


FAULTS: list[tuple[ScoreItem, str]] = [
    (ScoreItem("a", ("only",)), "responses: must be two or more"),
    (ScoreItem("a", ("x",) * 129), "responses: are 129: .* at most 128"),
    (ScoreItem("a", ("ab " * 300,) * 128), "responses: make 16,256 comparisons of .* tokens"),
    (ScoreItem("a", ("x", "y <|candidate2|> z")), r"responses\[1\].text: holds '<\|candidate2\|>'"),
    (ScoreItem("<|source|>", ("x", "y")), r"prompt.text: holds '<\|source\|>'"),
    (ScoreItem(FormattedText("a"), ("x", "y")), "prompt: must be text or a conversation"),
    (ScoreItem(np.array([5]), (np.array([6]), np.array([7]))), "prompt: must be text or"),
    (ScoreItem(conversation(("system", "a")), ("x", "y")), r"messages\[0\].role: is 'system'"),
    (ScoreItem(conversation(("user", "a"), ("assistant", "b")), ("x", "y")), "end with a user's"),
]


@pytest.mark.parametrize(("item", "message"), FAULTS)
def test_what_cannot_be_compared_is_refused(
    item: ScoreItem, message: str, model: RewardModel
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        model.encode(item, Truncation.PROMPT_LEFT)


def _config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def _without_marks(folder: Path) -> None:
    hub.write_tokenizer(folder)


def _other_order(folder: Path) -> None:
    hub.write_tokenizer(folder, (hub.MARKS[1], hub.MARKS[0], *hub.MARKS[2:]))


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (_without_marks, r"<\|source\|> is not the token \d+ of the tokenizer"),
    (_other_order, r"<\|source\|> is not the token \d+ of the tokenizer"),
    (_config(cand2_prefix_id=None), "gives cand2_prefix_id = None"),
    (_config(cand2_prefix_id=10_000), "must be different and below vocab_size"),
    (_config(n_tasks=3), r"head_layer.4.weight has the shape \[1, 64\]"),
    (_config(architectures=["DebertaV2ForSequenceClassification"], num_labels=1), "lacks pooler"),
    (_tensors(lambda t: t.pop("head_layer.1.weight")), "lacks head_layer.1.weight, a part of"),
    (_tensors(lambda t: t.update(other=torch.zeros(2))), "holds other, which DebertaV2PairRM does"),
    (_tensors(lambda t: t["head_layer.4.bias"].fill_(torch.nan)), "not finite"),
    (lambda f: Manifest(kind="process", step_marker="a").write(f), "kind = process can't be given"),
    (lambda f: Manifest(double_bos=True).write(f), "double_bos can't be given"),
    (_config(auto_map={"AutoModel": "pairrm.DebertaV2PairRM"}), "which is not the published"),
    (_config(drop_out=None), "does not say drop_out"),
    (_config(ranker_type="pairranker"), "LLM-Blender's own format"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_spoilt_folder_is_refused(
    spoil: Callable[[Path], None], message: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path)
    with pytest.raises(CheckpointRefused, match=message):
        load_model(tmp_path, name="pair", settings=EngineSettings())


def test_other_models_are_not_pairwise(folder: Path, tmp_path: Path) -> None:
    plain = hub.open_assistant(tmp_path / "plain")
    Manifest(kind="pairwise").write(plain)
    with pytest.raises(CheckpointRefused, match="needs a DebertaV2PairRM model"):
        load_model(plain, name="m", settings=EngineSettings())
    shutil.copytree(folder, tmp_path / "all" / "pair")
    Manifest(kind="ensemble", members=("pair",)).write(tmp_path / "all")
    with pytest.raises(CheckpointRefused, match="is of kind pairwise"):
        load_model(tmp_path / "all", name="e", settings=EngineSettings())
