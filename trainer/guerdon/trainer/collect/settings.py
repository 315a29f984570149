"""The settings of `guerdon data pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guerdon.trainer.errors import SettingsError
from guerdon.trainer.rl.settings import needs_rewards, not_negative, positive


@dataclass(frozen=True, kw_only=True)
class PairsSettings:
    """Every field is a key of `config.toml` and an option of the command line."""

    policy: str
    """Folder, hub name or embedded model that the sampler serves: its tokenizer and template."""
    sampler: str
    """HOST:PORT of the policy sampler; its weights are left as they are."""
    prompts: str
    """JSONL file of prompts."""
    output: str
    """Folder of the run; pairs.jsonl is in it."""
    reward: tuple[str, ...] = ()
    """HOST:PORT/MODEL of a served reward model, or WEIGHT*HOST:PORT/MODEL. Repeatable."""
    verifier: tuple[str, ...] = ()
    """exact, maths, regex:PATTERN or length:TOKENS, or WEIGHT*…; rewards by rule. Repeatable."""
    limit: int = 0
    """First so many prompts; 0 takes all."""
    samples_per_prompt: int = 8
    """Completions drawn for each."""
    max_tokens: int = 256
    """Tokens of the longest completion."""
    max_prompt_tokens: int = 1024
    """Prompts over this are refused before anything is drawn."""
    temperature: float = 1.0
    """Of sampling."""
    seed: int = 0
    """Of sampling and of choice."""

    pick: Literal["extremes", "random", "all"] = "extremes"
    """The best answer against the worst; the best against a random worse one; or every pair."""
    min_margin: float = 0.0
    """Pairs whose rewards are not further apart than this are left out."""
    max_per_prompt: int = 0
    """For --pick all: most pairs of a prompt, those furthest apart; 0 keeps all."""
    unfinished: bool = False
    """Take answers that were cut at max_tokens too."""

    in_flight: int = 32
    """Prompts that are sampled or scored at once."""
    patience: float = 600.0
    """Seconds that a service may stay away before the run ends."""
    request_timeout: float = 300.0
    """Seconds for one request to a service before it is tried again."""
    token_file: str = ""
    """File with the access token of the sampler and the reward servers; else $GUERDON_TOKEN."""
    tls: bool = False
    """Encrypt all connections, trusting the system's certificate authorities."""
    tls_ca: str = ""
    """Encrypt all connections, trusting the authorities in this PEM file."""

    def __post_init__(self) -> None:
        """Refuse values that can't be, naming the key."""
        needs_rewards(self.reward, self.verifier)
        for name in ("max_tokens", "max_prompt_tokens", "temperature", "in_flight", "patience",
                     "request_timeout"):  # fmt: skip
            positive(self, name)
        for name in ("limit", "seed", "min_margin", "max_per_prompt"):
            not_negative(self, name)
        if self.samples_per_prompt < 2:
            raise SettingsError("samples_per_prompt must be at least 2: a pair has two answers")
        if self.max_per_prompt and self.pick != "all":
            raise SettingsError("max_per_prompt is for pick = all only")
