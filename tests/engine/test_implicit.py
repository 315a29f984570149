"""Implicit rewards equal a direct computation by plain `transformers`, however they are batched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoints.support import edit_tensors
from tests.engine.implicit import BETA, Direct, Pairs, flat, implicit_folder
from tests.engine.support import words
from tests.support.tiny import tiny_checkpoint

from guerdon.models import Manifest
from guerdon.reward.engine import attention, language_head
from guerdon.reward.engine.settings import EngineSettings
from guerdon.reward.kinds import load_model
from guerdon.reward.types import (
    ComputeMode,
    EncodedItem,
    ModelKind,
    RewardModel,
    ScoreItem,
    Truncation,
)
from guerdon.serving.errors import CheckpointRefused

Make = Callable[[str], Path]

TOLERANCE = 1e-4
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    # A final cap so low that it bends every logit, and a window shorter than the prompts.
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),  # whose head has another name in the file
    "mistral": ("mistral", {}),
    "cohere": ("cohere", {"logit_scale": 0.3, "num_key_value_heads": 2}),
    "granite": ("granite", {"logits_scaling": 4.0, "num_key_value_heads": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`folder("llama")`: a policy and a reference of that kind, the same at each call."""
    root, made = tmp_path_factory.mktemp("implicit"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in made:
            architecture, settings = POLICIES[name]
            made[name] = implicit_folder(root / name, architecture, **settings)
        return made[name]

    return make


def load(folder: Path, **settings: Any) -> RewardModel:
    return load_model(folder, name="m", settings=EngineSettings(**settings))


def draw(seed: int, count: int, longest: int = 40) -> Pairs:
    """Prompts of mixed lengths, about half of them with several responses; some begin alike."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(count):
        responses = [
            words(rng, int(rng.integers(1, longest))) for _ in range(rng.choice([1, 1, 3]))
        ]
        if len(responses) == 3:
            responses = [np.concatenate([responses[0][:2], response]) for response in responses]
        pairs.append((words(rng, int(rng.integers(1, longest))), responses))
    return pairs


def encode(model: RewardModel, pairs: Pairs) -> list[EncodedItem]:
    return [model.encode(ScoreItem(p, tuple(rs)), Truncation.REJECT) for p, rs in pairs]


@pytest.mark.parametrize("name", POLICIES)
def test_every_batch_size(name: str, folder: Make) -> None:
    pairs = draw(0, 64)
    wanted = Direct(folder(name)).rewards(pairs)
    assert wanted.std() > 0.3, "rewards that hardly vary would hide faults"
    sizes = np.cumsum([len(rs) for _, rs in pairs])
    for mode in ("packed", "padded") if name in ("gemma2", "gpt2") else ("packed",):
        model = load(folder(name), mode=mode)
        assert model.info.kind is ModelKind.IMPLICIT
        items = encode(model, pairs)
        for size in (1, 2, 7, 64):
            found = flat(model.score(items[:size]))
            np.testing.assert_allclose(found, wanted[: sizes[size - 1]], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "mistral"])
def test_a_shared_prompt_is_computed_once_and_changes_nothing(name: str, folder: Make) -> None:
    model = load(folder(name))
    rng = np.random.default_rng(1)
    prompt, start = words(rng, 40), words(rng, 6)
    # The responses begin alike, so their first tokens are in the shared part and yet are read.
    responses = [np.concatenate([start, words(rng, n)]) for n in (1, 3, 20, 33)]
    together = model.score(encode(model, [(prompt, responses)]))
    alone = model.score(encode(model, [(prompt, [response]) for response in responses]))
    wanted = Direct(folder(name)).rewards([(prompt, responses)])
    for found in (together, alone):
        np.testing.assert_allclose(flat(found), wanted, atol=TOLERANCE, rtol=0)
    (row,) = together.items
    assert [s.reused_tokens for s in row] == [0, 46, 46, 46]
    assert [s.token_count for s in row] == [47, 49, 66, 79]
    once = 46 + 1 + 3 + 20 + 33
    assert together.stats.computed_tokens == 2 * once, "once by the policy, once by the reference"
    assert together.stats.sequences == 4


def test_the_vocabulary_is_gone_through_in_chunks(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = load(folder("gemma2")), draw(3, 8)
    items = encode(model, pairs)
    whole = flat(model.score(items))
    sizes, run = [], language_head.DetachedHead.forward
    monkeypatch.setattr(language_head, "CHUNK_LOGITS", 3 * 360)

    def watched(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return run(self, hidden)

    monkeypatch.setattr(language_head.DetachedHead, "forward", watched)
    np.testing.assert_allclose(flat(model.score(items)), whole, atol=1e-5, rtol=0)
    assert max(sizes) == 3
    read = sum(len(response) for _, rs in pairs for response in rs)
    assert sum(sizes) == 2 * read, "only the responses go through the head"


def test_deterministic_mode_gives_the_same_bits_in_any_company(folder: Make) -> None:
    model = load(folder("mistral"), deterministic=True, dtype="bfloat16")
    items = encode(model, draw(4, 6))
    alone = np.concatenate([flat(model.score([item])) for item in items])
    assert flat(model.score(items)).tolist() == alone.tolist()


@pytest.mark.parametrize("name", ["qwen2-tied", "gemma2"])
def test_half_precision_is_packed_and_near(name: str, folder: Make) -> None:
    model = load(folder(name), dtype="bfloat16")
    assert model.info.compute_mode is ComputeMode.PACKED, model.info.compute_mode_reason
    pairs = draw(5, 8)
    found, wanted = flat(model.score(encode(model, pairs))), Direct(folder(name)).rewards(pairs)
    assert np.abs(found - wanted).mean() < 0.15 * wanted.std()


def test_a_fault_in_packed_attention_falls_back(
    folder: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def faulty(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return attention.packed_attention(*args, sliding_window=None, **kwargs)

    def register() -> None:
        attention.AttentionInterface.register(attention.PACKED, faulty)

    monkeypatch.setattr("guerdon.reward.engine.engine.register", register)
    with caplog.at_level(logging.WARNING):
        model = load(folder("mistral"))
    assert model.info.compute_mode is ComputeMode.PADDED
    for role in ("policy", "reference"):
        assert f"{role}: packed probe scores differ" in model.info.compute_mode_reason
    pairs = draw(6, 6)
    wanted = Direct(folder("mistral")).rewards(pairs)
    np.testing.assert_allclose(flat(model.score(encode(model, pairs))), wanted, atol=TOLERANCE)
    with pytest.raises(CheckpointRefused, match="packed mode was asked for"):
        load(folder("mistral"), mode="packed")


def test_a_head_that_forgets_its_cap_is_refused(
    folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probes compare with the whole model, not with the head that was taken from it."""

    def plain_head(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.alone.lm_head(hidden)
        return logits

    monkeypatch.setattr(language_head.DetachedHead, "forward", plain_head)
    with pytest.raises(CheckpointRefused, match="probe scores differ"):
        load(folder("gemma2"))
    load(folder("llama"))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("bert", {}), ("gemma3_text", {"use_bidirectional_attention": True})],
)
def test_a_model_that_sees_what_it_foretells_is_refused(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    implicit_folder(tmp_path, architecture, **settings)
    with pytest.raises(CheckpointRefused, match="it is no causal language model"):
        load(tmp_path)


def test_a_head_that_can_not_be_taken_apart_is_refused(tmp_path: Path) -> None:
    settings = {"ffn_dim": 96, "word_embed_proj_dim": 64}
    with pytest.raises(CheckpointRefused, match="OPTForCausalLM can't be computed apart"):
        load(implicit_folder(tmp_path, "opt", **settings))


def test_policy_and_reference_may_be_of_different_architectures(tmp_path: Path) -> None:
    implicit_folder(tmp_path, "llama")
    tiny_checkpoint(tmp_path / "reference", "gpt2", seed=5, causal_lm=True)
    model, pairs = load(tmp_path), draw(7, 6)
    assert model.info.architecture == "LlamaForCausalLM / GPT2LMHeadModel"
    wanted = Direct(tmp_path).rewards(pairs)
    np.testing.assert_allclose(flat(model.score(encode(model, pairs))), wanted, atol=TOLERANCE)


def test_beta_scales_and_the_info_says_what_it_is(folder: Make, tmp_path: Path) -> None:
    base = folder("llama")
    Manifest(
        kind="implicit",
        policy=str(base / "policy"),
        reference=str(base / "reference"),
        beta=2 * BETA,
        mean=0.5,
        std=2.0,
        base_model="tiny",
        max_tokens=99,
    ).write(tmp_path)
    one, two, pairs = load(base), load(tmp_path), draw(8, 3)
    single, double = (flat(m.score(encode(m, pairs))) for m in (one, two))
    np.testing.assert_allclose(double, 2 * single, rtol=1e-6)
    info = two.info
    assert (info.mean, info.std, info.base_model, info.max_tokens) == (0.5, 2.0, "tiny", 99)
    assert info.parameters == one.info.parameters > 2 * 10_000
    assert 0 < info.probe_max_difference < 1e-4
    two.close()


def test_what_is_not_finite_is_passed_on(folder: Make) -> None:
    """Whoever dispatches the batch refuses it."""
    model = load(folder("llama"))
    engines: Any = model._engines  # type: ignore[attr-defined]
    with torch.no_grad():
        engines[1].model.lm_head.weight.fill_(float("nan"))
    assert np.isnan(flat(model.score(encode(model, draw(9, 2))))).all()


@pytest.mark.parametrize(
    ("role", "key"),
    [("policy", "lm_head.weight"), ("reference", "model.layers.0.mlp.up_proj.weight")],
)
def test_weights_that_are_missing_or_not_finite(role: str, key: str, tmp_path: Path) -> None:
    implicit_folder(tmp_path, "llama")
    edit_tensors(tmp_path / role, lambda t: t[key][0].fill_(float("nan")))
    with pytest.raises(CheckpointRefused, match=f"{key} in .*{role} holds 64|not finite"):
        load(tmp_path)
    edit_tensors(tmp_path / role, lambda t: t.pop(key))
    with pytest.raises(CheckpointRefused, match=f"{role} lacks {key}"):
        load(tmp_path)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(dtype: str, folder: Make) -> None:
    model = load(folder("llama"), device="cuda", dtype=dtype)
    assert model.info.compute_mode is ComputeMode.PACKED, model.info.compute_mode_reason
    pairs = draw(10, 32)
    found, wanted = flat(model.score(encode(model, pairs))), Direct(folder("llama")).rewards(pairs)
    allowed = TOLERANCE if dtype == "float32" else 0.15 * wanted.std()
    assert np.abs(found - wanted).mean() < allowed
