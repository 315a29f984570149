"""The folder of an evaluation.

config.toml       the settings, resolved
scored.jsonl      completions with their rewards, written as they come, for --resume
measured.jsonl    what else is found of each, for --resume
state.json        revisions of the reward models, fingerprints of the weights, seconds
samples.jsonl     a row for each completion, to read
plots/
evaluation.json   what was measured; written last
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from guerdon.trainer.common.run_folder import SETTINGS, RunFolder
from guerdon.trainer.common.run_state import RunState
from guerdon.trainer.common.services.reward_specs import check_same_models
from guerdon.trainer.common.services.settings import SERVICES

EVALUATION = "evaluation.json"
STATE = "state.json"


class EvalFolder(RunFolder):
    """Making the object looks only; `begin` writes."""

    may_change = frozenset({
        "output", "sampler", "reward", "heldout_reward", "harm", "harm_threshold", "baseline",
        "by", "publish", "shared_dir", "canaries", "canary_tolerance", "in_flight", *SERVICES,
        "admin_token_file", "plots",
    })  # fmt: skip
    """A resumed evaluation may ask other things of what was sampled, and find the same models
    elsewhere."""

    def _check_same(self) -> None:
        super()._check_same()
        before = tomllib.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        check_same_models(self.path, before, self._settings, ("reward", "heldout_reward", "harm"))


@dataclass
class EvalState(RunState):
    """What the figures of a resumed evaluation must have in common."""

    policy_sha256: str = ""
    reference_sha256: str = ""
