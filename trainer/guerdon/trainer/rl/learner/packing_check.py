"""Some completions whose log-probabilities `transformers` itself has computed, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from guerdon.trainer.rl.learner.packing import PackedRow, PackingUnit, make_row

TOLERANCE = 1e-3
"""Most that a log-probability may be off: float32 rounding stays a hundred times below."""
_LENGTHS = ((7, (5, 1, 9)), (3, (4,)))
"""Tokens of prompts, and of their completions."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Two prompts with completions, and what is right for them."""

    units: list[PackingUnit]
    right_N: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> Probe:
        """Drawn for a `PolicyModel`; what it says by `transformers`' own code is right."""
        device = next(model.parameters()).device
        units = _units(int(model.lm.config.get_text_config().vocab_size))
        right = [
            _plain(model, torch.from_numpy(ids).to(device), len(unit.prompt_ids_P))
            for unit in units
            for ids in (np.r_[unit.prompt_ids_P, r].astype(np.int64) for r in unit.responses)
        ]
        return cls(units, torch.cat(right))

    @torch.no_grad()
    def parts(self, model: Any) -> str | None:
        """Why a `PolicyModel` says otherwise as it computes now, in float32; None: it does not."""
        reduced, model.reduced = model.reduced, False
        found_N = torch.zeros_like(self.right_N)
        try:
            for row in self._rows(one_by_one=not model.packed):
                found_M = model(row.to(found_N.device), with_values=False).logprobs_M
                found_N[row.tokens_M.to(found_N.device)] = found_M.to(found_N.dtype)
        except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            model.reduced = reduced
        difference = float((found_N - self.right_N).abs().max())
        close = difference < TOLERANCE  # not so for NaN
        return None if close else f"log-probabilities part by {difference:.1e}"

    def _rows(self, *, one_by_one: bool) -> list[PackedRow]:
        if not one_by_one:
            return [make_row(self.units)]
        return [
            make_row([PackingUnit(unit.prompt_ids_P, (response,), (offset,))])
            for unit in self.units
            for response, offset in zip(unit.responses, unit.offsets, strict=True)
        ]


def _units(vocabulary: int) -> list[PackingUnit]:
    rng = np.random.default_rng(0)
    units, at = [], 0
    for prompt_length, lengths in _LENGTHS:
        prompt, *responses = (
            rng.integers(0, vocabulary, length).astype(np.int32)
            for length in (prompt_length, *lengths)
        )
        offsets = [at + sum(lengths[:i]) for i in range(len(lengths))]
        units.append(PackingUnit(prompt, tuple(responses), tuple(offsets)))
        at += sum(lengths)
    return units


def _plain(model: Any, ids: Tensor, start: int) -> Tensor:
    """Log-probabilities of a response by `transformers` alone."""
    logits = model.lm(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1].float()
    logprobs = F.log_softmax(logits / model.temperature, dim=-1)
    return logprobs.gather(-1, ids[start:, None])[:, 0]
