"""The settings of all that draws completions and has them scored: runs, evaluations, data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from guerdon.settings import not_negative, positive, refuse_idle
from guerdon.trainer.common.errors import SettingsError

SERVICES = ("patience", "request_timeout", "token_file", "verifier_token_file", "tls", "tls_ca")
"""The settings that say how services are reached: a resumed run may have other values."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """Every field is a key of `config.toml` and an option of the command line."""

    policy: str
    """Folder, hub name or embedded model."""
    sampler: str
    """HOST:PORT of the policy sampler."""
    prompts: str
    """File of prompts: JSON Lines, a JSON array, CSV or Parquet; a hub name, OWNER/NAME[:CONFIG];
    or a name such as questions-train."""
    prompts_split: str = "train"
    """Split of the prompts, where they are a data set and no file."""
    prompt_key: str = "prompt"
    """Column of the prompt in their rows."""
    answer_key: str = "answer"
    """Column of the right answer, for verifiers; the others are kept for them too."""
    output: str
    """Folder of the run."""
    reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL of a served reward model, or WEIGHT*HOST:PORT/MODEL. Repeatable."""
    reward_normalize: bool = False
    """Take each served model's score in standard deviations above the mean of its training set, so
    that weights mean the same for all. A model whose server does not know both is refused."""
    verifier: tuple[str, ...] = ()
    """Rewards by a rule (exact, maths, regex:PATTERN, length:TOKENS), by a function of yours
    (MODULE:FUNCTION), or by a service of yours (https://…); or WEIGHT*…. Repeatable."""
    reward_too_long: Literal["refuse", "prompt-left", "allow"] = "refuse"
    """When prompt and completion may be longer than a reward model takes: refuse the run at its
    start; drop tokens of the prompt's start; or go on, and see reward_refused."""
    reward_refused: Literal["penalise", "stop"] = "penalise"
    """What a completion does that a reward model refuses (no step marker, too long): it gets
    refused_reward, or it ends the run."""
    refused_reward: float = -10.0
    """Raw score of a refused completion, or the worst of its prompt's others if that is worse; for
    a negative weight its negative, or the best."""
    seed: int = 0
    """Seed of sampling."""
    samples_per_prompt: int = 8
    """Completions drawn for each."""
    max_tokens: int = 256
    """Tokens of the longest completion."""
    max_prompt_tokens: int = 1024
    """Prompts over this are refused before anything is drawn."""
    control_tokens: Literal["allow", "refuse"] = "allow"
    """Whether a prompt's text may spell special tokens of the policy, such as the end of a turn."""
    temperature: float = 1.0
    """Sampling temperature."""
    patience: float = 600.0
    """Seconds that a service may stay away before the run ends."""
    request_timeout: float = 300.0
    """Seconds for one request to a service before it is tried again; and for one call of a
    verifier's function, which then ends the run."""
    token_file: str = ""
    """File with the access token of the sampler and the reward servers; else $GUERDON_TOKEN."""
    verifier_token_file: str = ""
    """File with the token that verifiers at https://… are shown; else $GUERDON_VERIFIER_TOKEN."""
    tls: bool = False
    """Encrypt all connections, trusting the system's certificate authorities."""
    tls_ca: str = ""
    """Encrypt all connections, trusting the authorities in this PEM file."""

    def __post_init__(self) -> None:
        if not self.reward and not self.verifier:
            raise SettingsError("nothing gives rewards: set reward or verifier")
        positive(self, "samples_per_prompt", "max_tokens", "max_prompt_tokens", "temperature")
        positive(self, "patience", "request_timeout")
        not_negative(self, "seed")
        if not math.isfinite(self.refused_reward):
            raise SettingsError(f"refused_reward is {self.refused_reward}, it must be a number")


@dataclass(frozen=True, kw_only=True)
class PublishSettings(DrawSettings):
    """The settings of what gives the sampler its weights besides, and measures another reward."""

    heldout_reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL that is measured but never trained on: parts from the reward when hacked."""
    publish: Literal["stream", "shared", "nccl"] = "stream"
    """How weights reach the sampler: over gRPC, by a path on a shared disk, or by NCCL."""
    shared_dir: str = ""
    """Folder that both sides reach, for --publish shared; empty is weights/ in the output."""
    canaries: int = 4
    """Fixed sequences by which the published weights are proved; 0 trusts the checksum."""
    canary_tolerance: float = 0.0
    """Mean difference of log-probabilities that is let pass; 0 is the sampler's own default."""
    admin_token_file: str = ""
    """File with the sampler's token for updates; else $GUERDON_ADMIN_TOKEN, or the token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "canaries", "canary_tolerance")
        refuse_idle(
            self, ("shared_dir",), used=self.publish == "shared", because="without publish = shared"
        )
        refuse_idle(self, ("canary_tolerance",), used=self.canaries, because="where canaries is 0")


@dataclass(frozen=True, kw_only=True)
class PickSettings(DrawSettings):
    """Which answers of a prompt make pairs."""

    pick: Literal["extremes", "random", "all"] = "extremes"
    """Pairs of a prompt: the best answer against the worst; the best against a random worse one;
    or every pair."""
    min_margin: float = 0.0
    """Pairs whose rewards are not further apart than this are left out; ties always are."""
    max_per_prompt: int = 0
    """Most pairs of a prompt, those furthest apart, for --pick all; 0 keeps all."""
    unfinished: bool = False
    """Take answers that were cut at max_tokens too, less missing_eos_penalty where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "min_margin", "max_per_prompt")
        if self.samples_per_prompt < 2:
            raise SettingsError("samples_per_prompt must be at least 2: a pair has two answers")
        if self.max_per_prompt and self.pick != "all":
            raise SettingsError("max_per_prompt is for pick = all only")
