"""Estimates of a divergence from one draw of each token.

Schulman 2020, http://joschu.net/blog/kl-approx.html
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

LOG_LIMIT = 20.0
"""Log-ratios are clamped to ± this before they are exponentiated."""


def kl_estimate(logprobs_N: Tensor, other_N: Tensor, estimator: Estimator) -> Tensor:
    """KL(p ‖ q) of each token, by one draw from p; estimates, not a loss (see `kl_loss`).

    k1 = log p/q is unbiased and may be negative. k2 = ½k1² is biased. k3 = q/p − 1 + k1 is
    unbiased where p covers q, and never negative.

    Args:
        logprobs_N: log p of the drawn tokens.
        other_N: log q of them.
        estimator: which.
    """
    k1_N = logprobs_N - other_N
    if estimator == "k1":
        return k1_N
    if estimator == "k2":
        return 0.5 * k1_N.square()
    limited_N = k1_N.clamp(-LOG_LIMIT, LOG_LIMIT)
    return torch.expm1(-limited_N) + k1_N
