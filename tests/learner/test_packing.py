"""Packed rows: every token once, no padding, prompts shared, and the numbers of `transformers`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.learner.conftest import MORE
from tests.learner.support import (
    all_samples,
    make_group,
    make_learner,
    plain_logits,
    plain_logprobs,
    settings,
    wild_groups,
)
from tests.support.tiny import DECODERS
from torch import Tensor
from transformers import AutoModelForCausalLM

from guerdon.trainer.common.errors import TrainingError
from guerdon.trainer.common.models.language_model import plain_attention
from guerdon.trainer.common.services.types import Sample
from guerdon.trainer.rl.learner.algorithms import build
from guerdon.trainer.rl.learner.learner import Learner, _offsets
from guerdon.trainer.rl.learner.packing import idle_row, pack
from guerdon.trainer.rl.learner.packing_check import Probe
from guerdon.trainer.rl.learner.policy import new_policy, switch_attention
from guerdon.trainer.rl.settings import GRPOSettings, PPOSettings

Policy = Callable[[str], Path]


def plain(folder: Path) -> torch.nn.Module:
    """`transformers`, with the attention by which an architecture is defined."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def logprobs(learner: Learner, samples: list[Sample]) -> Tensor:
    """By packed rows."""
    rows = learner._pack(samples, _offsets(samples))
    with torch.no_grad():
        return learner._logprobs(rows, sum(sample.tokens for sample in samples))


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=5)),
        min_size=1,
        max_size=6,
    ),
    limit=st.integers(1, 60),
    share=st.booleans(),
)
def test_rows_hold_every_token_once_and_no_padding(
    sizes: list[tuple[int, list[int]]], limit: int, share: bool
) -> None:
    rng = np.random.default_rng(0)
    groups = [
        make_group(
            uid,
            rng.integers(0, 99, prompt).tolist(),
            [rng.integers(0, 99, length).tolist() for length in lengths],
            rng,
        )
        for uid, (prompt, lengths) in enumerate(sizes)
    ]
    samples = all_samples(groups)
    offsets = _offsets(samples)
    rows = pack(samples, offsets, limit, share=share)
    whole_N = np.concatenate([sample.response_ids_T for sample in samples])
    places = torch.cat([row.tokens_M for row in rows])
    assert sorted(places.tolist()) == list(range(len(whole_N)))
    for row in rows:
        assert row.targets_M.tolist() == whole_N[row.tokens_M.numpy()].tolist()
        responses = len(row.tokens_M) - sum(len(block.gather_nT) for block in row.blocks)
        assert len(row.ids_L) == responses + sum(block.prompt for block in row.blocks)
        alone = len(row.blocks) == 1 and len(row.blocks[0].gather_nT) == 1
        assert alone or (share and len(row.ids_L) <= limit)
    again = pack(samples, offsets, limit, share=share)
    assert [row.ids_L.tolist() for row in rows] == [row.ids_L.tolist() for row in again]


def test_a_prompt_is_computed_once_for_its_completions() -> None:
    group = make_group(0, range(50), [[1, 2], [3], [4, 5, 6]], np.random.default_rng(0))
    (row,) = pack(group.samples, _offsets(group.samples), 100)
    assert len(row.ids_L) == 50 + 1 + 0 + 2


@pytest.mark.parametrize("architecture", [*DECODERS, *MORE])
@pytest.mark.parametrize("lora_r", [0, 4])
def test_log_probabilities_are_those_of_transformers(
    policy: Policy, architecture: str, lora_r: int
) -> None:
    """Packed or, where windows are short, one by one; at a temperature that isn't 1."""
    if lora_r and architecture == "qwen3_moe":
        pytest.skip("refused: see test_export")
    folder = policy(architecture)
    run = settings(GRPOSettings, temperature=0.7, micro_batch_tokens=48, lora_r=lora_r)
    samples = all_samples(wild_groups(4, 3))
    learner = make_learner(folder, run)
    assert learner.module.packed == (architecture not in ("mistral", "gemma2", "gemma3_text"))
    model = plain(folder)
    with torch.no_grad():
        right = torch.cat([plain_logprobs(model, sample, 0.7) for sample in samples])
    # A log-probability of -69 has a float32 spacing of 8e-6, and processors add in other orders.
    bound = {"rtol": 5e-7, "atol": 2e-5}
    torch.testing.assert_close(logprobs(learner, samples), right, **bound)
    reference = learner._reference_logprobs(learner._pack(samples, _offsets(samples)), len(right))
    torch.testing.assert_close(reference, right, **bound)


def test_windows_that_the_input_fits_into_are_packed(policy: Policy) -> None:
    run = settings(GRPOSettings, max_prompt_tokens=8, max_tokens=8)
    learner = make_learner(policy("mistral"), run)
    assert learner.module.packed
    samples = all_samples(wild_groups(4, 3, longest=8))
    model = plain(policy("mistral"))
    with torch.no_grad():
        right = torch.cat([plain_logprobs(model, sample) for sample in samples])
    torch.testing.assert_close(logprobs(learner, samples), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "within"),
    [("gpt2", 1e-10), ("gemma2", 1e-10), ("llama", 1e-6), ("granite", 1e-6)],
)
def test_gradients_are_those_of_a_naive_computation(
    policy: Policy, architecture: str, within: float
) -> None:
    """Through log-probabilities, entropies, the value head, and the shared prompt; in float64.

    The norms of Llama and Granite round to float32 even so.
    """
    run = settings(PPOSettings, temperature=1.3)
    module = new_policy(policy(architecture), run, build(run).value_model).double()
    switch_attention(module, run)
    assert module.value_head is not None
    torch.nn.init.normal_(module.value_head.weight)
    samples = all_samples(wild_groups(3, 3))
    rng = torch.Generator().manual_seed(0)
    total = sum(sample.tokens for sample in samples)
    weight_3N = torch.randn(3, total, generator=rng, dtype=torch.float64)
    for row in pack(samples, _offsets(samples), 40, share=module.packed):
        parts = torch.stack([part for part in module(row) if part is not None])
        (weight_3N[:, row.tokens_M] * parts).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad(set_to_none=True)

    module.lm.set_attn_implementation(plain_attention(module.lm))  # eager rounds to float32
    naive = torch.cat([_naive(module, sample, 1.3) for sample in samples], dim=1)
    (weight_3N * naive).sum().backward()
    scale = max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)
    for name, parameter in module.named_parameters():
        gradient = found[name]
        assert gradient is not None
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=within * scale)


def _naive(module: torch.nn.Module, sample: Sample, temperature: float) -> Tensor:
    """Log-probability, entropy and value of each token, [3, T], from whole logits."""
    ids = np.concatenate([sample.prompt_ids_P, sample.response_ids_T]).astype(np.int64)
    found = module.lm(input_ids=torch.from_numpy(ids)[None], output_hidden_states=True)
    before = slice(len(sample.prompt_ids_P) - 1, len(ids) - 1)
    spread = torch.log_softmax(found.logits[0, before] / temperature, dim=-1)
    picked = torch.from_numpy(sample.response_ids_T.astype(np.int64))[:, None]
    values = module.value_head(found.hidden_states[-1][0, before])[:, 0]
    return torch.stack([spread.gather(-1, picked)[:, 0], -(spread.exp() * spread).sum(-1), values])


def test_one_completion_does_not_see_another(policy: Policy) -> None:
    learner = make_learner(policy("llama"), settings(GRPOSettings))
    group, other = wild_groups(2, 4)
    alone = logprobs(learner, group.samples[1:2])
    beside = logprobs(learner, [*group.samples, *other.samples])
    at = group.samples[0].tokens
    torch.testing.assert_close(beside[at : at + len(alone)], alone, rtol=0, atol=1e-5)


def test_a_model_that_is_not_understood_is_refused(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some scale their logits: computed otherwise than by `transformers`, nothing is trained."""
    run = settings(GRPOSettings)
    module = new_policy(policy("llama"), run)
    head = module.lm.forward

    def scaled(*args: object, **kwargs: object) -> object:
        found = head(*args, **kwargs)
        found.logits = found.logits * 2
        return found

    monkeypatch.setattr(module.lm, "forward", scaled)
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match="isn't known here"):
        switch_attention(module, run)


def test_an_attention_that_parts_is_not_used(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = settings(GRPOSettings)
    module = new_policy(policy("llama"), run)
    real = Probe.parts
    monkeypatch.setattr(
        Probe, "parts", lambda self, model: "so" if model.packed else real(self, model)
    )
    switch_attention(module, run)
    assert not module.packed
    assert "one by one, without packing: so" in caplog.text
    samples = all_samples(wild_groups(2, 2))
    model = plain(policy("llama"))
    for row in pack(samples, _offsets(samples), 100, share=False):
        (block,) = row.blocks
        assert len(block.gather_nT) == 1
        sample = next(
            s
            for s in samples
            if s.response_ids_T.tolist() == row.targets_M.tolist() and s.tokens == len(row.tokens_M)
        )
        found = module(row).logprobs_M.detach()
        right = plain_logprobs(model, sample).detach()
        torch.testing.assert_close(found, right, rtol=0, atol=1e-5)


def test_an_idle_row_counts_nothing() -> None:
    row = idle_row()
    assert row.idle
    assert len(row.ids_L) == 1


def test_plain_logits_end_before_the_last_token(policy: Policy) -> None:
    """The reference of these tests itself: one row of logits for each response token."""
    (group,) = wild_groups(1, 2)
    for sample in group.samples:
        with torch.no_grad():
            assert len(plain_logits(plain(policy("llama")), sample)) == sample.tokens
