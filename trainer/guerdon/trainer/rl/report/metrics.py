"""What a step's line in metrics.jsonl may hold.

A line has the keys that its algorithm has; a key that is not listed here is a mistake of ours,
which the tests of whole runs look for. docs/rl-reference.md is made from this table.
"""

from __future__ import annotations

KEYS: dict[str, dict[str, str]] = {
    "run": {
        "step": "published updates of the policy, from 1; 0 is before training (rft: steps of "
        "fine-tuning; 0 is also the row of what was sampled)",
        "version": "weight version that this step published (rft: that drew the samples)",
        "seconds": "seconds of the run so far, earlier parts of a resumed run included",
        "lr": "learning rate of the policy",
        "value_lr": "learning rate of the value model",
    },
    "rewards": {
        "reward": "mean reward of the step's completions: the weighted sum, before shaping",
        "reward_std": "its standard deviation over completions",
        "reward_se": "standard error of the mean, over prompts",
        "reward_group_std": "mean over prompts of the standard deviation within a group",
        "reward_shaped": "mean after scaling, clipping and the missing-EOS penalty",
        "reward_scale": "what rewards were divided by (`reward_scale = running`)",
        "reward/NAME": "mean score (raw unless `reward_normalize`) of each of several parts",
        "refused": "share of completions that a reward model refused (see `reward_refused`)",
        "accepted": "share of completions that were kept (RFT, Online RFT)",
    },
    "completions": {
        "prompts": "prompts trained on",
        "completions": "completions trained on",
        "tokens": "their response tokens",
        "length": "mean tokens of a completion",
        "finished": "share that ended by itself, not at `max_tokens`",
        "distinct_1": "different tokens over all tokens, over the step's completions together",
        "distinct_2": "the same for pairs of tokens; falls as completions grow alike",
        "repetition": "mean share of a completion's 4-grams that it said before",
    },
    "policy": {
        "loss": "what the optimiser stepped on, mean over the step's updates",
        "policy_loss": "its policy part",
        "kl": "KL(π_θ ‖ π_ref) in nats per completion, Σ_t w·k1 over its tokens, w = π_prox/π_μ; "
        "an adaptive β goes by it",
        "kl_token": "the same per token, by w·k3",
        "kl_loss": "its KL part, before β (`kl_in = loss`)",
        "kl_coef": "β, which an adaptive one changes",
        "entropy": "mean entropy of the next-token distribution, in nats",
        "clip_fraction": "share of tokens whose ratio π_θ/π_prox was clipped",
        "dual_clip_fraction": "share of tokens that the dual clip changed",
        "approx_kl": "KL(π_prox ‖ π_θ) per token, by w·k3: how far the step's updates went",
        "ratio": "mean of π_θ/π_prox",
        "ratio_max": "its largest",
        "grad_norm": "norm of the policy's gradient before clipping",
        "skipped_updates": "updates left out because no token had an advantage; 0 but rarely",
        "equal_rewards": "share of prompts whose completions all had the same reward",
        "advantage": "mean advantage, before whitening",
        "advantage_std": "its standard deviation",
    },
    "preference pairs (Online DPO)": {
        "pairs": "pairs trained on",
        "paired": "share of prompts that made a pair: no tie, and not all cut at `max_tokens`",
        "pair_margin": "mean difference of a pair's rewards",
        "pair_longer": "share of pairs whose chosen completion is the longer one",
        "accuracy": "share whose chosen completion has the higher implied reward, β·log(π/π_ref)",
        "margin": "mean difference of a pair's implied rewards, before the update",
        "chosen_reward": "mean implied reward of the chosen completions",
        "rejected_reward": "the same of the rejected ones",
    },
    "fine-tuning (RFT)": {
        "token_accuracy": "share of the kept completions' tokens that were the likeliest",
        "sft_tokens": "tokens of fine-tuning so far, prompts included",
        "epoch": "passes over what was kept",
    },
    "value": {
        "value_loss": "loss of the value model",
        "value": "mean value",
        "returns": "mean return",
        "explained_variance": "1 − Var(return − value)/Var(return)",
        "value_clip_fraction": "share of tokens whose value was clipped",
        "value_grad_norm": "norm of its own weights' gradient before clipping",
    },
    "off-policy": {
        "staleness": "mean weight versions that a token was behind when it was trained on",
        "staleness_max": "the most; never above `max_staleness`",
        "mismatch_kl": "KL(π_μ ‖ π_prox) per token, by k3: sampler against trainer",
        "weight": "mean of w = π_prox/π_μ, before it is capped",
        "weight_max": "its largest",
        "capped_fraction": "share of tokens whose w was capped or masked",
        "ess": "effective sample size of w over tokens, (Σw)²/(n·Σw²): 1 is on-policy",
        "expired_groups": "groups that were too old and whose prompts were sampled again",
    },
    "speed": {
        "tokens_per_second": "response tokens of the step over its seconds",
        "seconds/step": "wall clock from the last step's end to this one's",
        "seconds/NAME": "of them, in `wait` (for rollouts), `learn`, `publish`, `evaluate`, "
        "`checkpoint`",
        "seconds/sampling": "in which at least one completion was being drawn",
        "seconds/scoring": "in which at least one group was being scored",
        "idle/sampler": "share of the step in which nothing was drawn",
        "idle/rewards": "share in which nothing was scored",
        "idle/learner": "share in which the learner waited for rollouts",
        "faults": "times so far that a service was away and came back",
        "memory": "most bytes that the accelerator's allocator held so far",
    },
    "evaluation": {
        "eval/reward": "mean reward of held-out prompts",
        "eval/reward_se": "its standard error, over prompts",
        "eval/reward/NAME": "mean of one reward's raw score, where there are several",
        "eval/heldout_reward": "mean of the reward model that is never trained on",
        "eval/heldout_reward_se": "its standard error",
        "eval/kl": "KL(π_θ ‖ π_ref) in nats per completion, on held-out prompts",
        "eval/kl_se": "its standard error",
        "eval/length": "mean tokens of a completion",
        "eval/length_se": "its standard error",
        "eval/finished": "share that ended by itself",
        "eval/refused": "as `refused`",
        "eval/repetition": "as `repetition`",
        "eval/distinct_1": "as `distinct_1`",
        "eval/distinct_2": "as `distinct_2`",
        "eval/prompts": "held-out prompts",
        "eval/completions": "their completions",
    },
}
"""Every key of a line and what it means, by group; NAME stands for any name."""


def describe(key: str) -> str | None:
    """What a key means; None when it is unknown."""
    table = {name: text for group in KEYS.values() for name, text in group.items()}
    heads = [name.removesuffix("NAME") for name in table if name.endswith("/NAME")]
    named = [head for head in heads if key.startswith(head)]  # a name may hold slashes itself
    return table.get(key) or (table[f"{named[0]}NAME"] if named else None)
