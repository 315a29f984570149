"""The settings of `guerdon eval policy`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from guerdon.trainer.errors import SettingsError
from guerdon.trainer.rl.settings import RunSettings, needs_rewards, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Every field is a key of `config.toml` and an option of the command line."""

    policy: str
    """Folder, hub name or embedded model to evaluate; its weights are published to the sampler."""
    reference: str
    """The same, of the policy that KL is measured from: what training began with."""
    sampler: str
    """HOST:PORT of a sampler that serves the same architecture; it keeps the policy's weights."""
    prompts: str
    """JSONL file of prompts."""
    output: str
    """Folder of the evaluation."""
    reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL of a served reward model, or WEIGHT*HOST:PORT/MODEL. Repeatable."""
    verifier: tuple[str, ...] = ()
    """exact, maths, regex:PATTERN or length:TOKENS, or WEIGHT*…; rewards by rule. Repeatable."""
    heldout_reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL that the policy was not trained on: parts from the reward when hacked."""
    harm: str = ""
    """HOST:PORT/MODEL of a served classifier that scores harmful answers higher."""
    harm_threshold: float | None = None
    """An answer is harmful when the classifier's raw score is over this. Needed with --harm."""
    baseline: str = ""
    """Folder of another evaluation of the same prompts, for win rates and differences."""
    by: tuple[str, ...] = ()
    """Field of the prompts' rows to break the figures down by. Repeatable."""

    limit: int = 0
    """First so many prompts; 0 takes all."""
    samples_per_prompt: int = 4
    """Completions drawn for each."""
    max_tokens: int = 256
    """Tokens of the longest completion."""
    max_prompt_tokens: int = 1024
    """Prompts over this are refused before anything is drawn."""
    temperature: float = 1.0
    """Of sampling; for KL the policy's and the reference's logits are divided by it too."""
    seed: int = 0
    """Of sampling."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the computation of KL, and of what is published: as the recipes compute."""

    publish: Literal["stream", "shared"] = "stream"
    """How weights reach the sampler: over gRPC, or by a path on a shared disk."""
    shared_dir: str = ""
    """For --publish shared: a folder that both sides reach; empty is weights/ in the output."""
    canaries: int = 4
    """Fixed sequences by which the published weights are proved; 0 trusts the checksum."""
    canary_tolerance: float = 0.0
    """Mean difference of log-probabilities that is let pass; 0 is the sampler's own default."""

    in_flight: int = 16
    """Prompts that are sampled or scored at once."""
    patience: float = 600.0
    """Seconds that a service may stay away before the evaluation ends."""
    request_timeout: float = 300.0
    """Seconds for one request to a service before it is tried again."""
    token_file: str = ""
    """File with the access token of the sampler and the reward servers; else $GUERDON_TOKEN."""
    admin_token_file: str = ""
    """File with the sampler's token for updates; else $GUERDON_ADMIN_TOKEN, or the token."""
    tls: bool = False
    """Encrypt all connections, trusting the system's certificate authorities."""
    tls_ca: str = ""
    """Encrypt all connections, trusting the authorities in this PEM file."""
    plots: bool = True
    """Draw plots/*.png."""

    def __post_init__(self) -> None:
        """Refuse values that can't be, naming the key."""
        needs_rewards(self.reward, self.verifier)
        if self.harm and self.harm_threshold is None:
            raise SettingsError("harm_threshold is missing: only you know from where a score of "
                                "the classifier means harm")  # fmt: skip
        if self.harm_threshold is not None and not self.harm:
            raise SettingsError("harm_threshold does nothing without harm")
        if self.harm_threshold is not None and not math.isfinite(self.harm_threshold):
            raise SettingsError(f"harm_threshold is {self.harm_threshold}, it must be a number")
        for name in ("samples_per_prompt", "max_tokens", "max_prompt_tokens", "temperature",
                     "in_flight", "patience", "request_timeout"):  # fmt: skip
            positive(self, name)
        for name in ("limit", "seed", "canaries", "canary_tolerance"):
            not_negative(self, name)
        if len(set(self.by)) != len(self.by):
            raise SettingsError(f"by names a field twice: {', '.join(self.by)}")

    def as_run(self) -> RunSettings:
        """What the connections of a training run need, which serve this too: seeded sampling."""
        known = {field.name for field in dataclasses.fields(RunSettings)}
        same = {name: getattr(self, name) for name in known if hasattr(self, name)}
        return RunSettings(
            **same, eval_prompts=self.prompts, eval_samples=self.samples_per_prompt,
            eval_limit=self.limit, deterministic=True,
        )  # fmt: skip
