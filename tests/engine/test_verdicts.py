"""Verdicts equal plain `transformers` over whole sequences, for heads of every sort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.checkpoints.test_verdicts import verdict
from tests.engine.implicit import flat
from tests.engine.support import words
from tests.engine.test_implicit import draw, encode, load
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from guerdon.reward.engine import attention, language_head
from guerdon.reward.engine.heads import find_head
from guerdon.reward.engine.language_head import VerdictNetwork
from guerdon.reward.types import ComputeMode, ModelKind
from guerdon.serving.errors import CheckpointRefused

Make = Callable[[str], Path]

TOLERANCE = 1e-4
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    # A final cap so low that it bends both logits, and a window shorter than the prompts.
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "mistral": ("mistral", {}),
    "cohere": ("cohere", {"logit_scale": 0.3, "num_key_value_heads": 2}),
    "phi": ("phi", {}),  # whose head has a bias
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Make:
    root, made = tmp_path_factory.mktemp("verdicts"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in made:
            architecture, settings = MODELS[name]
            made[name] = verdict(root / name, architecture=architecture, **settings)
        return made[name]

    return make


def log_odds(folder: Path, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """log p("a") − log p("b") after each sequence, by all logits of the model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["a", "b"])
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([list(map(int, row))])).logits[0, -1]
            logprobs = logits.double().log_softmax(-1)
            found.append(float(logprobs[yes] - logprobs[no]))
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
def test_every_head(name: str, folder: Make) -> None:
    pairs = draw(0, 16)
    rows = [[*prompt, *response] for prompt, responses in pairs for response in responses]
    wanted = log_odds(folder(name), rows)
    assert wanted.std() > 0.3, "scores that hardly vary would hide faults"
    for mode in ("packed", "padded") if name in ("gemma2", "gpt2") else ("packed",):
        model = load(folder(name), mode=mode)
        assert model.info.kind is ModelKind.VERDICT
        items = encode(model, pairs)
        for batch in ([items], [[item] for item in items], [items]):
            found = np.concatenate([flat(model.score(each)) for each in batch])
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0)


def test_a_shared_prompt_is_computed_once(folder: Make) -> None:
    model = load(folder("mistral"))
    rng = np.random.default_rng(1)
    pairs = [(words(rng, 40), [words(rng, n) for n in (1, 3, 20)])]
    found = model.score(encode(model, pairs))
    assert [s.reused_tokens for s in found.items[0]] == [0, 40, 40]
    assert found.stats.computed_tokens == 40 + 1 + 3 + 20


def test_the_same_bits_in_any_company(folder: Make) -> None:
    model = load(folder("mistral"), deterministic=True, dtype="bfloat16")
    items = encode(model, draw(4, 6))
    alone = np.concatenate([flat(model.score([item])) for item in items])
    assert flat(model.score(items)).tolist() == alone.tolist()


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma2"])
def test_half_precision_is_packed_and_near(name: str, folder: Make) -> None:
    model = load(folder(name), dtype="bfloat16")
    assert model.info.compute_mode is ComputeMode.PACKED, model.info.compute_mode_reason
    pairs = draw(5, 8)
    rows = [[*prompt, *response] for prompt, responses in pairs for response in responses]
    wanted = log_odds(folder(name), rows)
    found = flat(model.score(encode(model, pairs)))
    assert np.abs(found - wanted).mean() < 0.15 * wanted.std()


def test_only_the_rows_that_are_read_are_kept_and_in_float32(folder: Make) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder("qwen2-tied"), dtype=torch.bfloat16)
    head = find_head(VerdictNetwork(model, [5, 9]))
    sizes = {(tuple(parameter.shape), parameter.dtype) for parameter in head.layers.parameters()}
    assert sizes == {((2, 64), torch.float32)}
    assert model.lm_head.weight.dtype == torch.bfloat16, "the model itself stays as it was"


def test_a_head_that_reads_other_rows_is_refused(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes compare with the whole model, not with the head that was taken from it."""
    whole = language_head.DetachedHead

    def swapped(model: Any, tokens: Sequence[int]) -> Any:
        return whole(model, tokens[::-1])

    monkeypatch.setattr(language_head, "DetachedHead", swapped)
    with pytest.raises(CheckpointRefused, match="probe scores differ"):
        load(folder("llama"))


def test_a_fault_in_packed_attention_falls_back(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return attention.packed_attention(*args, sliding_window=None, **kwargs)

    def register() -> None:
        attention.AttentionInterface.register(attention.PACKED, faulty)

    monkeypatch.setattr("guerdon.reward.engine.engine.register", register)
    assert load(folder("mistral")).info.compute_mode is ComputeMode.PADDED


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    verdict(tmp_path, architecture="gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(CheckpointRefused, match="it is no causal language model"):
        load(tmp_path)


def test_a_head_that_can_not_be_taken_apart_is_refused(tmp_path: Path) -> None:
    settings = {"architecture": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64}
    with pytest.raises(CheckpointRefused, match="OPTForCausalLM can't be computed apart"):
        load(verdict(tmp_path, **settings))


def test_what_is_not_finite_is_passed_on(folder: Make) -> None:
    """Whoever dispatches the batch refuses it."""
    model = load(folder("llama"))
    engines: Any = model._engines  # type: ignore[attr-defined]
    with torch.no_grad():
        engines[0].model.get_input_embeddings().weight.fill_(float("nan"))
    assert np.isnan(flat(model.score(encode(model, draw(9, 2))))).all()
