"""What is measured, published and saved of RFT's policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.rft.support import rft_settings_of
from tests.support.tiny import tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.trainer.common.models import published_model
from guerdon.trainer.common.models.language_model import merged
from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.common.trl import completions
from guerdon.trainer.common.trl.completions import response_logprobs
from guerdon.trainer.rl.rft.run import adapted


@torch.no_grad()
def alone(folder: Path, sample: Sample, temperature: float) -> Any:
    """Log-probabilities of one response, by transformers and nothing else."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(np.concatenate([sample.prompt_ids_P, sample.response_ids_T])).long()
    rows = (model(input_ids=ids[None]).logits[0] / temperature).log_softmax(-1)
    places = range(len(sample.prompt_ids_P) - 1, len(ids) - 1)
    return [rows[place, ids[place + 1]].item() for place in places]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("most", [1, 40, 512])
def test_batches_give_what_transformers_gives_alone(
    most: int,
    temperature: float,
    tiny: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completions, "BATCH_TOKENS", most)
    found = response_logprobs(
        published_model.load(tiny),
        [s.completion for s in samples],
        temperature=temperature,
        dtype="float32",
    )
    for sample, logprobs in zip(samples, found, strict=True):
        assert logprobs.dtype == np.float32
        assert logprobs == pytest.approx(alone(tiny, sample, temperature), abs=1e-4)


def test_bfloat16_is_close(tiny: Path, samples: list[Sample]) -> None:
    model = published_model.load(tiny)
    exact, rough = (
        np.concatenate(
            response_logprobs(model, [s.completion for s in samples], temperature=1.0, dtype=dtype)
        )
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rough).mean() < 0.05


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tensors_are_published_and_saved_once(tied: bool, tmp_path: Path) -> None:
    folder = tiny_checkpoint(
        tmp_path / "m", "llama", causal_lm=True, tie_word_embeddings=tied, seed=3
    )
    model = published_model.load(folder)
    ids = np.array([5, 6, 7, 8], np.int32)
    found = published_model.weights(model, 7, "float32", [ids], computed="float32")
    names = [spec.name for spec in found.specs]
    assert ("lm_head.weight" in names) == (not tied)
    assert len(set(names)) == len(names) == len(list(found.tensors()))
    assert found.version == 7
    sample = Sample(0, 0, ids[:1], ids[1:], np.zeros(3, np.float32), np.ones(3, np.int32), True, "")
    assert found.canaries[0].token_ids == ids.tolist()
    assert found.canaries[0].logprobs == pytest.approx(alone(folder, sample, 1.0), abs=1e-5)

    published_model.save(
        model, AutoTokenizer.from_pretrained(folder), tmp_path, "bfloat16", computed="float32"
    )
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == set(names)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert again.config.use_cache
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(torch.bfloat16)), name


def test_what_bfloat16_does_not_see_is_not_published(samples: list[Sample], tmp_path: Path) -> None:
    """Learner and sampler must be one policy, or no sample is on-policy."""
    model = published_model.load(tiny_checkpoint(tmp_path, "llama", causal_lm=True, seed=3))

    def published(computed: str) -> list[Any]:
        found = published_model.weights(model, 1, "float32", [], computed=computed)
        return list(found.tensors())

    def drawn() -> Any:
        found = response_logprobs(
            model, [s.completion for s in samples], temperature=1.0, dtype="bfloat16"
        )
        return np.concatenate(found)

    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    for linear in linears:
        linear.weight.data = linear.weight.bfloat16().float()
    before, logprobs = published("bfloat16"), drawn()
    for linear in linears:
        linear.weight.data *= 1.001  # less than half of bfloat16's spacing
    assert np.array_equal(drawn(), logprobs)
    same = [torch.equal(a, b) for a, b in zip(published("bfloat16"), before, strict=True)]
    assert all(same)
    assert {t.dtype for t in published("bfloat16")} == {torch.float32}
    assert not all(
        torch.equal(a, b) for a, b in zip(published("float32"), before, strict=True)
    )  # where the learner sees it, the sampler gets it


def test_lora_begins_as_the_model_and_is_merged(tiny: Path, samples: list[Sample]) -> None:
    model = published_model.load(tiny)
    assert adapted(model, rft_settings_of()) is model
    how: Any = {"temperature": 1.0, "dtype": "float32"}
    before = np.concatenate(response_logprobs(model, [s.completion for s in samples], **how))
    model = adapted(model, rft_settings_of(lora_r=2))
    assert np.concatenate(
        response_logprobs(model, [s.completion for s in samples], **how)
    ) == pytest.approx(before, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    moved = np.concatenate(response_logprobs(model, [s.completion for s in samples], **how))
    assert np.abs(moved - before).max() > 0.1
    plain = merged(model)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    after = np.concatenate(response_logprobs(plain, [s.completion for s in samples], **how))
    assert after == pytest.approx(moved, abs=1e-4)
