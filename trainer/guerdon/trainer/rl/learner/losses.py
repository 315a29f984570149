"""Losses of policies and value models, as pure functions of flat tensors.

Every tensor is [N]: one number for each response token, samples one after the other. A loss is
a *sum* of token losses times `weights_N`, which hold every division (`token_weights`): it is
the same however the tokens are cut into micro-batches, rows or processes. Tokens outside
`mask_N` don't matter, whatever numbers they hold.

π_θ is being learnt, π_prox is π_θ at the start of the step, π_μ drew the tokens, π_ref is frozen.

Sources
    PPO            Schulman et al. 2017, arXiv:1707.06347, eq. 7
    decoupled PPO  Hilton et al. 2021, arXiv:2110.00641, eq. 2; AReaL, arXiv:2505.24298, eq. 5
    dual clip      Ye et al. 2019, arXiv:1912.09729, eq. 5
    clip-higher    DAPO, arXiv:2503.14476, sec. 3.1
    DPO            Rafailov et al. 2023, arXiv:2305.18290, eq. 7; IPO, arXiv:2310.12036, eq. 17
                   (there of sums); hinge of SLiC, arXiv:2305.10425
    KL as a loss   Liu et al. 2025, arXiv:2510.01555: k1 in the reward and k2 as a loss give the
                   gradient of the reverse KL; k3 as a loss does not
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from guerdon.trainer.common.measuring.kl_estimate import LOG_LIMIT, Estimator, kl_estimate

Aggregation = Literal["token", "sequence", "constant"]
CapMode = Literal["truncate", "mask"]
PairLoss = Literal["sigmoid", "ipo", "hinge"]


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A sum of token losses to differentiate, and sums to log."""

    loss: Tensor
    """Scalar, differentiable."""
    sums: dict[str, Tensor]
    """Detached scalars, over the masked tokens and unweighted."""
    maxima: dict[str, Tensor]
    """Detached scalars."""


def token_weights(
    lengths_S: Tensor,
    mask_N: Tensor,
    aggregation: Aggregation,
    *,
    n_samples: float,
    n_tokens: float,
    max_tokens: int,
) -> Tensor:
    """What each token's loss is multiplied by, so that sums are the mean that was asked for.

    token:    1 / tokens                            (DAPO; long completions count more)
    sequence: 1 / (samples · tokens of its sample)  (GRPO, Shao et al. 2024, eq. 3)
    constant: 1 / (samples · max_tokens)            (Dr. GRPO, arXiv:2503.20783)

    Counts are of masked tokens, before a capped behaviour weight leaves any out: leaving some
    out may not make the others weigh more.

    Args:
        lengths_S: int64 [S].
        mask_N: bool [N].
        aggregation: which mean.
        n_samples: samples with a masked token in the optimiser step, over all processes.
        n_tokens: masked tokens likewise.
        max_tokens: the most that a completion may have.

    Returns:
        float64 [N]; 0 outside the mask.
    """
    mask = mask_N.to(torch.float64)
    if aggregation == "token":
        return mask / max(n_tokens, 1.0)
    per_sample = mask / max(n_samples, 1.0)
    if aggregation == "constant":
        return per_sample / max_tokens
    own_S = segment_sum(mask, lengths_S).clamp(min=1.0)
    return per_sample / own_S.repeat_interleave(lengths_S)


def segment_sum(values_N: Tensor, lengths_S: Tensor) -> Tensor:
    """The sum of each sample's tokens, [S]."""
    owner_N = torch.arange(len(lengths_S), device=values_N.device).repeat_interleave(lengths_S)
    return values_N.new_zeros(len(lengths_S)).index_add(0, owner_N, values_N)


def importance(logprobs_N: Tensor, behaviour_N: Tensor) -> Tensor:
    """sg(p/μ) of tokens that μ drew, without a cap: makes means under μ means under p."""
    return _exp(logprobs_N - behaviour_N).detach()


def behaviour_weight(
    proximal_N: Tensor, behaviour_N: Tensor, *, cap: float, mode: CapMode
) -> Tensor:
    """w = sg(π_prox/π_μ), by which an expectation under π_μ becomes one under π_prox.

    Args:
        proximal_N: log π_prox.
        behaviour_N: log π_μ.
        cap: most that w may be.
        mode: set a larger w to the cap, or to 0, which leaves the token out.
    """
    weight_N = importance(proximal_N, behaviour_N)
    if mode == "truncate":
        return weight_N.clamp(max=cap)
    return torch.where(weight_N <= cap, weight_N, 0.0)


def ppo_loss(
    logprobs_N: Tensor,
    proximal_N: Tensor,
    behaviour_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    mask_N: Tensor,
    *,
    clip: float,
    clip_high: float = 0.0,
    dual_clip: float = 0.0,
    cap: float = 2.0,
    mode: CapMode = "truncate",
) -> TokenLoss:
    """Decoupled PPO: −Σ w·min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π_θ/π_prox. With π_prox = π_μ, PPO.

    Args:
        logprobs_N: log π_θ, differentiable.
        proximal_N: log π_prox.
        behaviour_N: log π_μ.
        advantages_N: A, as of the token.
        weights_N: of the tokens in the mean.
        mask_N: bool; the tokens that count.
        clip: ε below 1, and above where `clip_high` is 0.
        clip_high: ε above 1.
        dual_clip: c > 1: the objective of a token with A < 0 is at least c·A; 0 has no bound.
        cap: most that w may be.
        mode: what happens to a larger one.

    Returns:
        The loss; sums `tokens`, `clip_fraction`, `dual_clip_fraction`, `ratio`, `approx_kl`
        (KL(π_prox ‖ π_θ) by k3, weighed by w without a cap); maximum `ratio_max`.
    """
    (logprobs_N, proximal_N, behaviour_N, advantages_N), weights_N = _masked(
        mask_N, weights_N, logprobs_N, proximal_N, behaviour_N, advantages_N
    )
    log_ratio_N = logprobs_N - proximal_N
    ratio_N = _exp(log_ratio_N)
    clipped_N = ratio_N.clamp(1 - clip, 1 + (clip_high or clip))
    objective_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    was_clipped_N = clipped_N * advantages_N < ratio_N * advantages_N
    bounded_N = torch.zeros_like(mask_N)
    if dual_clip:
        bound_N = dual_clip * advantages_N
        bounded_N = (advantages_N < 0) & (bound_N > objective_N)
        objective_N = torch.where(bounded_N, bound_N, objective_N)
    w_N = behaviour_weight(proximal_N, behaviour_N, cap=cap, mode=mode)
    loss = -(weights_N * w_N * objective_N).sum()
    sums = {
        "clip_fraction": was_clipped_N,
        "dual_clip_fraction": bounded_N,
        "ratio": ratio_N,
        "approx_kl": importance(proximal_N, behaviour_N)
        * kl_estimate(proximal_N, logprobs_N.detach(), "k3"),
    }
    return TokenLoss(loss, _sums(mask_N, sums), {"ratio_max": _largest(ratio_N, mask_N)})


def nll_loss(logprobs_N: Tensor, weights_N: Tensor, mask_N: Tensor) -> TokenLoss:
    """−Σ log π_θ: supervised learning on samples, the gradient coefficient 1 for each token.

    Online RFT: Shao et al. 2024, arXiv:2402.03300, eq. 10 with GC = 1.
    """
    (logprobs_N,), weights_N = _masked(mask_N, weights_N, logprobs_N)
    return TokenLoss(-(weights_N * logprobs_N).sum(), _sums(mask_N, {}), {})


def pair_loss(delta_K: Tensor, kind: PairLoss, beta: float) -> Tensor:
    """The loss of each preference pair, [K], as TRL's `DPOTrainer` has it.

    sigmoid: −log σ(βΔ)        ipo: (Δ − 1/2β)²        hinge: max(0, 1 − βΔ)

    Args:
        delta_K: Δ = h(chosen) − h(rejected), where h is log(π_θ/π_ref) of a whole completion;
            for ipo its mean over the completion's tokens.
        kind: which.
        beta: β.
    """
    match kind:
        case "sigmoid":
            return -logsigmoid(beta * delta_K)
        case "ipo":
            return (delta_K - 1 / (2 * beta)).square()
        case "hinge":
            return torch.relu(1 - beta * delta_K)


def linear_loss(
    logprobs_N: Tensor,
    proximal_N: Tensor,
    slopes_N: Tensor,
    values_N: Tensor,
    weights_N: Tensor,
    mask_N: Tensor,
) -> TokenLoss:
    """Σ ℓ + s·(log π_θ − log π_prox): a loss to first order around π_prox.

    At π_θ = π_prox both value and gradient are the loss's own, whatever it couples.

    Args:
        logprobs_N: log π_θ, differentiable.
        proximal_N: log π_prox.
        slopes_N: s, the loss's derivative by the token's log-probability at π_prox.
        values_N: ℓ, the token's share of the loss at π_prox.
        weights_N: of the tokens.
        mask_N: bool; the tokens that count.
    """
    (logprobs_N, proximal_N, slopes_N, values_N), weights_N = _masked(
        mask_N, weights_N, logprobs_N, proximal_N, slopes_N, values_N
    )
    loss_N = values_N + slopes_N * (logprobs_N - proximal_N)
    return TokenLoss((weights_N * loss_N).sum(), _sums(mask_N, {}), {})


def value_loss(
    values_N: Tensor,
    old_values_N: Tensor,
    returns_N: Tensor,
    weights_N: Tensor,
    mask_N: Tensor,
    *,
    clip: float,
) -> TokenLoss:
    """½ Σ max((V−G)², (clip(V, V_old ± ε_v) − G)²).

    Args:
        values_N: V, differentiable.
        old_values_N: V at the start of the step.
        returns_N: G.
        weights_N: of the tokens in the mean.
        mask_N: bool; the tokens that count.
        clip: ε_v; 0 does not clip.

    Returns:
        The loss; sums `tokens`, `value_clip_fraction`.
    """
    (values_N, old_values_N, returns_N), weights_N = _masked(
        mask_N, weights_N, values_N, old_values_N, returns_N
    )
    error_N = (values_N - returns_N).square()
    was_clipped_N = torch.zeros_like(mask_N)
    if clip:
        near_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        other_N = (near_N - returns_N).square()
        was_clipped_N = other_N > error_N
        error_N = torch.maximum(error_N, other_N)
    loss = 0.5 * (weights_N * error_N).sum()
    return TokenLoss(loss, _sums(mask_N, {"value_clip_fraction": was_clipped_N}), {})


def sequence_kl(
    logprobs_N: Tensor, other_N: Tensor, behaviour_N: Tensor, mask_N: Tensor, lengths_S: Tensor
) -> Tensor:
    """KL(p ‖ q) of each whole completion in nats, by tokens that μ drew: Σ_t w·k1, w = p/μ. [S].

    Its mean is exactly the sum of the tokens' divergences in the states that μ comes by, and with
    μ = p (no stale token) exactly KL(p ‖ q) of completions. Without w it is off by KL(μ ‖ p), and
    may be below 0. Like the loss's w it does not reach back to how the state was come by: the
    product over all tokens before would, with a variance that grows exponentially in them.

    w is not capped, for that would bias the mean low again; a single huge w moves an adaptive β
    no further than the bound on its error lets it.

    Args:
        logprobs_N: log p.
        other_N: log q.
        behaviour_N: log μ.
        mask_N: bool; the tokens that count.
        lengths_S: int64 [S].
    """
    (logprobs_N, other_N, behaviour_N), _ = _masked(
        mask_N, mask_N, logprobs_N, other_N, behaviour_N
    )
    k1_N = kl_estimate(logprobs_N, other_N, "k1")
    return segment_sum(importance(logprobs_N, behaviour_N) * k1_N, lengths_S)


def kl_loss(
    logprobs_N: Tensor,
    reference_N: Tensor,
    behaviour_N: Tensor,
    weights_N: Tensor,
    mask_N: Tensor,
    *,
    estimator: Estimator = "k2",
    cap: float = 2.0,
    mode: CapMode = "truncate",
) -> TokenLoss:
    """KL(π_θ ‖ π_ref) as a loss: its gradient is that of each token's own divergence.

    The gradient of k2 is k1·∇log π_θ, whose mean over π_θ is exactly ∇KL; that of k3 is
    (1 − π_ref/π_θ)·∇log π_θ, which is ∇KL to first order only, and that of k1 has mean 0.
    The tokens were drawn by π_μ, so each is weighed by sg(π_θ/π_μ), capped like w.

    What a token does to the divergence of those after it is not in this gradient (GRPO's
    leaves it out too): for the regularised optimum of whole sequences, put KL in the reward.

    Args:
        logprobs_N: log π_θ, differentiable.
        reference_N: log π_ref.
        behaviour_N: log π_μ.
        weights_N: of the tokens in the mean.
        mask_N: bool; the tokens that count.
        estimator: k2, or k3 to compare with others' results.
        cap: most that π_θ/π_μ may be.
        mode: what happens to a larger one.
    """
    (logprobs_N, reference_N, behaviour_N), weights_N = _masked(
        mask_N, weights_N, logprobs_N, reference_N, behaviour_N
    )
    w_N = behaviour_weight(logprobs_N.detach(), behaviour_N, cap=cap, mode=mode)
    kl_N = kl_estimate(logprobs_N, reference_N, estimator)
    return TokenLoss((weights_N * w_N * kl_N).sum(), _sums(mask_N, {}), {})


def entropy_bonus(entropy_N: Tensor, weights_N: Tensor, mask_N: Tensor) -> TokenLoss:
    """Σ H(π_θ(·|s_t)): to be subtracted from a loss.

    An entropy is over all tokens that could be drawn, so the drawn one needs no weight w.
    """
    (entropy_N,), weights_N = _masked(mask_N, weights_N, entropy_N)
    sums = _sums(mask_N, {"entropy": entropy_N})
    return TokenLoss((weights_N * entropy_N).sum(), sums, {})


def off_policy_sums(
    proximal_N: Tensor, behaviour_N: Tensor, mask_N: Tensor, *, cap: float
) -> tuple[dict[str, Tensor], Tensor]:
    """How far the policy that drew the tokens is from the trainer's, as float64 sums.

    Returns:
        Sums: `tokens`; `weight`, `weight_squared` (of w before it is capped), `capped` (how
        many are over the cap), `k1` and `k3` of KL(π_μ ‖ π_prox). And the largest w.
    """
    (proximal_N, behaviour_N), _ = _masked(
        mask_N, mask_N, proximal_N.double(), behaviour_N.double()
    )
    w_N = _exp(proximal_N - behaviour_N)
    sums = {
        "weight": w_N,
        "weight_squared": w_N.square(),
        "capped": w_N > cap,
        "k1": kl_estimate(behaviour_N, proximal_N, "k1"),
        "k3": kl_estimate(behaviour_N, proximal_N, "k3"),
    }
    return _sums(mask_N, sums), _largest(w_N, mask_N)


def _exp(log_ratio_N: Tensor) -> Tensor:
    """The ratio, without infinities."""
    return log_ratio_N.clamp(-LOG_LIMIT, LOG_LIMIT).exp()


def _masked(mask_N: Tensor, weights_N: Tensor, *tensors: Tensor) -> tuple[list[Tensor], Tensor]:
    """The tensors and weights with 0 outside the mask, so that no NaN there spreads.

    `where` on the inputs, not on the results: the gradient of 0·exp(NaN) would be NaN.
    """
    zeroed = [torch.where(mask_N, tensor, torch.zeros_like(tensor)) for tensor in tensors]
    return zeroed, torch.where(mask_N, weights_N, torch.zeros_like(weights_N))


def _sums(mask_N: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float64 sums over the mask, and how many tokens it has."""
    mask = mask_N.to(torch.float64)
    return {"tokens": mask.sum()} | {
        name: (value_N.detach().to(torch.float64) * mask).sum() for name, value_N in values.items()
    }


def _largest(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """The largest over the mask; 0 where it is empty."""
    kept = torch.where(mask_N, values_N.detach(), torch.zeros_like(values_N)).to(torch.float64)
    return kept.amax() if kept.numel() else kept.new_zeros(())
