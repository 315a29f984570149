"""The settings of `guerdon train ppo|grpo|rloo|rft|online-rft|online-dpo`.

One flat table: every field is a key of `config.toml` and an option of the command line
(`max_staleness` is `--max-staleness`). Its docstring is the option's help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from guerdon.settings import not_negative, positive, refuse_idle
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.learning_rate import LearningRate
from guerdon.trainer.common.processes import settle_dtype
from guerdon.trainer.common.services.settings import PickSettings, PublishSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings(LearningRate, PublishSettings):
    """What every recipe of reinforcement learning has, RFT too."""

    algorithm: ClassVar[str] = ""  # the command's name
    run_module: ClassVar[str] = ""  # its `train` runs the recipe; imported when it is needed
    # Keys that the recipe once took without using them, with the only value that they could
    # have: settings files of older runs hold them. A new recipe has none.
    retired: ClassVar[Mapping[str, object]] = {}
    keeps_reference: ClassVar[bool] = True  # whether the first weights stay in memory
    chunks_logits: ClassVar[bool] = True  # whether not all logits of a micro-batch exist at once
    default_lr: ClassVar[float] = 2e-6
    default_lora_lr: ClassVar[float] = 1e-4

    policy: str
    """Folder, hub name or embedded model to begin from; the sampler must serve the same."""
    prompts: str
    """Prompts to train on: a file of JSON Lines, a JSON array, CSV or Parquet; a hub name,
    OWNER/NAME[:CONFIG]; or questions-train or arithmetic-train, the project's own."""
    prompts_limit: int = 0
    """First so many prompts to train on; 0 takes all."""
    eval_prompts: str
    """Held-out prompts, in the same forms; of the project's own, questions-eval or
    arithmetic-eval."""
    eval_prompts_split: str = "test"
    """Split of the held-out prompts, where they are a data set and no file."""
    steps: int = 20
    """Updates of the policy that are published."""
    seed: int = 0
    """Seed of the prompts' order, of sampling, and of new weights."""

    max_tokens: int = 64
    max_prompt_tokens: int = 512
    """Prompts over this are refused before the run begins."""
    temperature: float = 1.0
    """Sampling temperature; the trainer's and the reference's logits are divided by it too."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the reward of a completion that did not end by itself."""

    lr: float | None = None
    """Peak learning rate of the policy. Small models want more: 3e-5 suits the embedded one."""
    warmup_steps: int = 0
    """Steps in which the rate rises from 0."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rate does after its rise."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradient clipping, by the norm over the policy's weights."""
    micro_batch_tokens: int = 2048
    """Most tokens, prompts included, in one forward and backward pass."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the computation; weights and optimiser are in float32 either way. auto is bfloat16
    on a GPU and on processors that multiply in it, else float32."""
    publish_dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Dtype of the published weights; auto is the sampler's own, another value than the sampler's
    ends the run."""
    lora_r: int = 0
    """Rank of LoRA; 0 trains all weights."""
    lora_alpha: float = 0.0
    """0 is twice the rank."""
    gradient_checkpointing: bool = False
    """Less memory, more time."""

    publish: Literal["stream", "shared", "nccl"] = "stream"
    """How weights reach the sampler: over gRPC, by a path on a shared disk, or by NCCL (not
    tried on GPUs yet)."""
    canaries: int = 4
    """Fixed sequences by which every published version is proved; 0 trusts the
    checksum, which nccl lacks: refused there."""
    deterministic: bool = False
    """Seed every completion, and take them in order: a run can be repeated bit for bit with a
    sampler that draws the same for the same seed."""

    eval_samples: int = 2
    """Completions of each held-out prompt."""
    eval_limit: int = 64
    """Most held-out prompts; 0 takes all."""
    checkpoint_every: int = 5
    """Steps between checkpoints for --resume; 0 writes none."""
    keep_checkpoints: int = 1
    """How many are kept while the run goes on."""
    sample_rows: int = 8
    """Completions of each step that go to samples.jsonl."""
    tracker: tuple[str, ...] = ()
    """tensorboard or wandb. Repeatable."""
    plots: bool = True
    """Draw plots/*.png at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "micro_batch_tokens", "eval_samples", "max_grad_norm", "keep_checkpoints")
        if self.lr is not None:
            positive(self, "lr")
        not_negative(self, "missing_eos_penalty", "weight_decay", "warmup_steps", "lora_r")
        not_negative(self, "lora_alpha", "eval_limit", "checkpoint_every", "sample_rows")
        not_negative(self, "prompts_limit")
        if self.publish == "nccl" and not self.canaries:
            raise SettingsError("canaries is 0, but nothing else proves what comes by nccl")
        refuse_idle(self, ("lora_alpha",), used=self.lora_r, because="without lora_r")
        refuse_idle(
            self,
            ("keep_checkpoints",),
            used=self.checkpoint_every,
            because="where checkpoint_every is 0",
        )
        settle_dtype(self)

    @property
    def trains_value_network(self) -> bool:
        """Whether there is a value network beside the policy."""
        return False


@dataclass(frozen=True, kw_only=True)
class OnlineSettings(RunSettings):
    """What the algorithms share that sample from the policy as it trains."""

    run_module: ClassVar[str] = "guerdon.trainer.rl.run"

    prompts_per_step: int = 8
    """Prompts in a step, over all processes."""
    max_staleness: int = 0
    """Weight versions that a token may be behind when it is trained on; 0 is synchronous."""
    eval_every: int = 10
    """Steps between evaluations on held-out prompts; 0 evaluates before and after only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "steps", "prompts_per_step")
        not_negative(self, "max_staleness", "eval_every")
        if self.deterministic and self.max_staleness:
            raise SettingsError(
                "deterministic needs max_staleness = 0: with overlap, what draws a token depends "
                "on time"
            )


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSettings(OnlineSettings):
    """What PPO, GRPO and RLOO share."""

    group_is_baseline: ClassVar[bool] = True  # of a completion: the prompt's others

    reward_scale: Literal["none", "running"] = "none"
    """Divide rewards by their running standard deviation (the mean stays)."""
    reward_clip: float = 0.0
    """Clip rewards to ± this after scaling; 0 does not."""
    epochs: int = 1
    """Passes over a step's samples."""
    minibatches: int = 1
    """Optimiser steps in a pass."""
    clip: float = 0.2
    """ε of the clipped ratio π_θ/π_prox, below 1."""
    clip_high: float = 0.0
    """ε above 1 (DAPO's clip-higher); 0 is the same as below."""
    dual_clip: float = 0.0
    """c of the dual clip for negative advantages (3 is usual); 0 does not."""
    behaviour_cap: float = 2.0
    """Most that the weight w = π_prox/π_μ of a token may be."""
    behaviour_mode: Literal["truncate", "mask"] = "truncate"
    """What happens to a larger w: it is set to the cap, or the token is left out."""
    kl_coef: float = 0.02
    """β: weight of KL(π_θ ‖ π_ref)."""
    kl_target: float = 0.0
    """KL per completion in nats that an adaptive β aims at; 0 keeps β fixed."""
    kl_horizon: float = 1000.0
    """Completions over which the adaptive β moves."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean over tokens; over completions of their means; or sum / max_tokens (Dr. GRPO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "epochs", "minibatches", "clip", "behaviour_cap", "kl_horizon")
        not_negative(
            self, "reward_clip", "clip_high", "dual_clip", "kl_coef", "kl_target", "entropy_coef"
        )
        if self.minibatches > self.prompts_per_step:
            raise SettingsError("minibatches is more than prompts_per_step")
        if 0 < self.dual_clip <= 1:
            raise SettingsError("dual_clip must be over 1, or 0 for none")
        refuse_idle(self, ("kl_in", "kl_target"), used=self.kl_coef, because="where kl_coef is 0")
        refuse_idle(self, ("kl_horizon",), used=self.kl_target, because="without kl_target")
        if self.group_is_baseline and self.samples_per_prompt < 2:
            raise SettingsError("samples_per_prompt must be at least 2: the group is the baseline")


@dataclass(frozen=True, kw_only=True)
class PPOSettings(PolicyGradientSettings):
    """Decoupled PPO with a value model."""

    algorithm: ClassVar[str] = "ppo"
    group_is_baseline: ClassVar[bool] = False

    kl_in: Literal["reward", "loss"] = "reward"
    """Whether β·KL is taken from the token rewards or added to the loss."""
    value: Literal["head", "own"] = "head"
    """A linear head on the policy's last hidden states, or a network of its own."""
    value_lr: float = 0.0
    """Peak learning rate of the value model; 0 is 3e-4 for a head, 1e-5 for a network."""
    value_max_grad_norm: float = 1.0
    """Gradient clipping of the value model, by the norm over its own weights."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    value_warmup: int = 0
    """First steps in which only the value model learns; the policy's warmup_steps and an adaptive
    β begin after them."""
    clip_value: float = 0.2
    """ε_v: how far the value may move from its old one; 0 does not clip."""
    gamma: float = 1.0
    """γ of GAE."""
    lam: float = 1.0
    """λ of GAE. Under 1, early tokens hear of the reward only as far as the value model foresees
    it."""
    whiten: bool = True
    """Give advantages mean 0 and variance 1 over the step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "value_lr", "value_coef", "value_warmup", "clip_value")
        positive(self, "value_max_grad_norm")
        if self.value_warmup >= self.steps:
            raise SettingsError("value_warmup is not under steps: the policy would never learn")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, it must be 0 to 1")

    @property
    def trains_value_network(self) -> bool:
        """Whether the value model is a network of its own."""
        return self.value == "own"

    @property
    def value_learning_rate(self) -> float:
        """The value model's peak learning rate, chosen or by default."""
        return self.value_lr or (3e-4 if self.value == "head" else 1e-5)


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(PolicyGradientSettings):
    """Group-relative policy optimisation (DeepSeekMath)."""

    algorithm: ClassVar[str] = "grpo"
    retired: ClassVar[Mapping[str, object]] = {"kl_in": "loss"}  # there are no token rewards

    scale_by_std: bool = True
    """Divide a group's advantages by its standard deviation (Dr. GRPO does not)."""


@dataclass(frozen=True, kw_only=True)
class RLOOSettings(PolicyGradientSettings):
    """REINFORCE with a leave-one-out baseline."""

    algorithm: ClassVar[str] = "rloo"

    kl_in: Literal["reward", "loss"] = "reward"
    """Whether β·KL is taken from the completion's reward or added to the loss."""


_UNSHAPED = {"reward_scale": "none", "reward_clip": 0.0}
"""What the recipes never took that don't learn by how much a reward is better."""


@dataclass(frozen=True, kw_only=True)
class KeepSettings(RunSettings):
    """What RFT and Online RFT share: which completions are kept."""

    retired: ClassVar[Mapping[str, object]] = _UNSHAPED
    default_lr: ClassVar[float] = 2e-5
    default_lora_lr: ClassVar[float] = 2e-4

    keep: Literal["threshold", "top"] = "threshold"
    """Keep completions whose reward is at least the threshold, or each prompt's best."""
    threshold: float = 1.0
    """Least reward that is kept, for --keep threshold."""
    top: int = 1
    """Completions that are kept of each prompt, for --keep top."""
    max_per_prompt: int = 0
    """Most that are kept of a prompt, drawn at random; 0 keeps all."""
    deduplicate: bool = True
    """Keep one of equal completions to a prompt."""
    keep_cut: bool = False
    """Keep completions that were cut at max_tokens too: the policy unlearns to end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "top")
        not_negative(self, "max_per_prompt")
        if not math.isfinite(self.threshold):
            raise SettingsError(f"threshold is {self.threshold}, it must be a finite number")
        for name, keep in (("threshold", "threshold"), ("top", "top")):
            refuse_idle(self, (name,), used=self.keep == keep, because=f"without keep = {keep}")


@dataclass(frozen=True, kw_only=True)
class OnlineRFTSettings(KeepSettings, OnlineSettings):
    """Online RFT: supervised steps on accepted samples of the policy as it trains."""

    algorithm: ClassVar[str] = "online-rft"


@dataclass(frozen=True, kw_only=True)
class RFTSettings(KeepSettings):
    """RFT: sample once from the first policy, keep the good ones, fine-tune on them."""

    algorithm: ClassVar[str] = "rft"
    run_module: ClassVar[str] = "guerdon.trainer.rl.rft.run"
    keeps_reference: ClassVar[bool] = False
    chunks_logits: ClassVar[bool] = False
    retired: ClassVar[Mapping[str, object]] = {
        **_UNSHAPED,
        "prompts_per_step": 8,
        "max_staleness": 0,
        "eval_every": 10,
    }

    publish: Literal["stream", "shared"] = "stream"
    """How weights reach the sampler: over gRPC, or by a path on a shared disk."""
    steps: int = 0
    """Steps of fine-tuning, however many passes that is; 0 goes by epochs."""
    epochs: float = 2.0
    """Passes of fine-tuning over what was kept, where steps is 0."""
    batch_size: int = 16
    """Completions in a step of fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "steps")
        positive(self, "epochs", "batch_size")
        refuse_idle(self, ("epochs",), used=not self.steps, because="where steps is given")


@dataclass(frozen=True, kw_only=True)
class OnlineDPOSettings(OnlineSettings, PickSettings):
    """Online DPO: DPO on pairs of completions of the policy as it trains."""

    algorithm: ClassVar[str] = "online-dpo"
    retired: ClassVar[Mapping[str, object]] = _UNSHAPED
    default_lr: ClassVar[float] = 5e-6
    default_lora_lr: ClassVar[float] = 5e-5

    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """What a pair costs, as in guerdon train dpo: the paper's (arXiv:2305.18290), IPO's
    (arXiv:2310.12036, over mean log-probabilities), or SLiC's hinge (arXiv:2305.10425)."""
    beta: float = 0.1
    """β: how strongly the policy is held to the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta")
        if self.missing_eos_penalty and not self.unfinished:
            raise SettingsError(
                "missing_eos_penalty does nothing where completions that were cut make no pair: "
                "set unfinished"
            )
