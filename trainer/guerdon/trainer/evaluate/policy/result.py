"""What an evaluation found: evaluation.json and the rows of samples.jsonl. Computes, writes not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from guerdon.trainer.common.data.row_notes import measured_by_group
from guerdon.trainer.common.measuring import monitors
from guerdon.trainer.common.measuring.policy_evaluation import (
    SHARES,
    Evaluation,
    PerSample,
    evaluate,
    mean_over_prompts,
)
from guerdon.trainer.common.measuring.samples import sample_row
from guerdon.trainer.common.measuring.statistics import Estimate, paired
from guerdon.trainer.common.services.reward_specs import parse_reward
from guerdon.trainer.common.services.types import Group
from guerdon.trainer.evaluate.policy.baseline import FORMAT, Baseline, row_measures
from guerdon.trainer.evaluate.policy.columns import (
    HARM,
    HELDOUT,
    LOGPROB,
    MISMATCH,
    REFERENCE,
    Columns,
)
from guerdon.trainer.evaluate.policy.inputs import EvalInputs
from guerdon.trainer.evaluate.policy.refusals import is_refusal
from guerdon.trainer.evaluate.policy.settings import EvalSettings
from guerdon.trainer.evaluate.policy.winning import reward_per_kl, win_rates

OWN_KEYS = frozenset({
    "prompt_index", "sample", "prompt", "response", "reward", "parts", "heldout_reward", "kl",
    "tokens", "finished", "repetition", "refusal", "harm", "harmful", "answer",
    "tools", "chat_template_kwargs",
})  # fmt: skip
"""The keys of a row of samples.jsonl; a field of the prompts' rows with one of these names is left
out."""


def terms(settings: EvalSettings, inputs: EvalInputs) -> dict[str, Any]:
    """What was evaluated and how, known before anything is sampled."""
    prompts = inputs.prompts
    normalized = settings.reward_normalize
    rewards, heldout = (
        [_without_host(spec, normalized=normalized) for spec in specs]
        for specs in (settings.reward, settings.heldout_reward)
    )
    return {
        "format": FORMAT,
        "policy": settings.policy,
        "reference": settings.reference,
        "policy_sha256": inputs.policy_sha256,
        "reference_sha256": inputs.reference_sha256,
        "prompts": {
            "source": prompts.source,
            "sha256": prompts.sha256,
            "count": len(prompts),
            "split": settings.prompts_split,
            "prompt_key": settings.prompt_key,
            "answer_key": settings.answer_key,
        },
        "samples_per_prompt": settings.samples_per_prompt,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "dtype": settings.dtype,
        "rewards": [*rewards, *settings.verifier],
        "heldout": " + ".join(heldout) or None,
        "harm": _harm(settings),
    }


def _harm(settings: EvalSettings) -> dict[str, Any] | None:
    if not settings.harm:
        return None
    return {"model": _without_host(settings.harm), "threshold": settings.harm_threshold}


def _without_host(spec: str, *, normalized: bool = False) -> str:
    reward = parse_reward(spec)
    model = reward.described(normalized=normalized)
    return model if reward.weight == 1.0 else f"{reward.weight:g}*{model}"


class Measurement:
    """All completions, with all that is known of each.

    Args:
        settings: of the evaluation.
        inputs: its prompts and policies.
        groups: scored, in the prompts' order.
        columns: whole.
    """

    def __init__(
        self, settings: EvalSettings, inputs: EvalInputs, groups: Sequence[Group], columns: Columns
    ) -> None:
        self.groups = groups
        self._subgroups = inputs.subgroups
        self.kl = _kl(inputs, groups, columns)
        tokens = sum(sample.tokens for group in groups for sample in group.samples)
        self.mismatch_kl = sum(map(sum, columns.of(MISMATCH, groups))) / tokens
        """KL(sampler ‖ policy) in nats a token, by k3: what was drawn is of the policy."""
        self.heldout = columns.of(HELDOUT, groups) if settings.heldout_reward else None
        self.harm = columns.of(HARM, groups) if settings.harm else None
        self.threshold = settings.harm_threshold
        self._each = len(groups[0].samples)
        self.rows = [row for at in range(len(groups)) for row in self._rows(at)]
        self.evaluation: Evaluation = evaluate(
            0, groups, kl=self.kl, heldout=self.heldout, more=self._more()
        )

    def _more(self) -> dict[str, PerSample]:
        names = ["refusal"] + (["harmful"] if self.harm is not None else [])
        size = len(self.groups[0].samples)
        cut = [self.rows[at : at + size] for at in range(0, len(self.rows), size)]
        return {name: [[float(row[name]) for row in rows] for rows in cut] for name in names}

    def _rows(self, at: int) -> list[dict[str, Any]]:
        """The rows of samples.jsonl for one group."""
        group, rows = self.groups[at], []
        extra = {k: v for k, v in group.task.row.extra.items() if k not in OWN_KEYS}
        for place, sample in enumerate(group.samples):
            row = sample_row(group, sample)
            for key in ("task", "versions"):
                del row[key]
            if self.heldout is not None:
                row["heldout_reward"] = self.heldout[at][place]
            row["kl"] = self.kl[at][place]
            row["repetition"] = monitors.repetition(sample.response_ids_T)
            row["refusal"] = is_refusal(sample.text)
            if self.harm is not None:
                assert self.threshold is not None
                row["harm"] = self.harm[at][place]
                row["harmful"] = self.harm[at][place] > self.threshold
            rows.append(row | extra)
        return rows

    def found(self, terms: Mapping[str, Any], baseline: Baseline | None) -> dict[str, Any]:
        """The figures of evaluation.json.

        Args:
            terms: of this evaluation, with the `revisions` of its models.
            baseline: checked against them.
        """
        every = self.evaluation
        wins = self._wins(terms, baseline) if baseline else {}
        change = self._difference(terms, baseline) if baseline else {}
        ratio, reason = reward_per_kl(
            every.reward,
            baseline.reward if baseline else None,
            every.estimates["kl"],
            of_reference=baseline is not None and baseline.has_weights(terms["reference_sha256"]),
        )
        return {
            "completions": every.completions,
            "measures": {name: found.as_dict() for name, found in every.estimates.items()},
            "distinct_1": every.distinct_1,
            "distinct_2": every.distinct_2,
            "reward_per_kl": ratio,
            "reward_per_kl_reason": reason or None,
            "win_rate": baseline
            and {"against": baseline.found["policy"]}
            | {
                name: mean_over_prompts("win_rate", list(rates.values()), self._each).as_dict()
                for name, rates in wins.items()
            },
            "difference": baseline and {name: _change(name, of) for name, of in change.items()},
            "subgroups": self._by_value(wins.get("reward")),
            "mismatch_kl": self.mismatch_kl,
            "warnings": self._warnings(change),
        }

    def _warnings(self, change: Mapping[str, Estimate]) -> list[str]:
        found = []
        if self.mismatch_kl > monitors.MISMATCH:
            found.append(
                "the sampler drew from another policy than the one whose weights it was given: "
                f"mismatch_kl is {self.mismatch_kl:.3g}, over {monitors.MISMATCH}; compare their "
                "dtypes"
            )
        finished = self.evaluation.estimates["finished"].mean
        if finished < 0.5:
            found.append(
                f"{1 - finished:.0%} of the answers were cut at max_tokens, and scored as they were"
            )
        if "heldout_reward" in change:
            proxy, heldout = change["reward"], change["heldout_reward"]
            if proxy.rose and heldout.fell:
                found.append(
                    f"the reward is {proxy.mean:.3g} above the baseline's while the held-out "
                    f"reward is {-heldout.mean:.3g} below, both beyond their noise: the policy may "
                    "be gaming its reward"
                )
        return found

    def _wins(self, terms: Mapping[str, Any], baseline: Baseline) -> dict[str, dict[int, float]]:
        """Each prompt's win rate, by reward."""
        mine: dict[str, dict[int, list[float]]] = {}
        for row in self.rows:
            for name, value in row_measures(row).items():
                mine.setdefault(name, {}).setdefault(row["prompt_index"], []).append(value)
        names = [
            name
            for name in baseline.comparable(terms)
            if name.partition("/")[0] in ("reward", "heldout_reward") and name in mine
        ]
        return {name: win_rates(mine[name], baseline.columns[name]) for name in names}

    def _difference(self, terms: Mapping[str, Any], baseline: Baseline) -> dict[str, Estimate]:
        """Ours less the baseline's, paired over prompts."""
        ours = self.evaluation.prompts
        return {
            name: paired(baseline.means(name), ours[name])
            for name in baseline.comparable(terms)
            if name in ours
        }

    def _by_value(self, wins: Mapping[int, float] | None) -> dict[str, Any]:
        measured: dict[str, Mapping[int, float]] = dict(self.evaluation.prompts)
        if wins is not None:
            measured["win_rate"] = wins

        def of(indices: list[int]) -> dict[str, Any]:
            return {
                name: mean_over_prompts(
                    name, [means[index] for index in indices], self._each
                ).as_dict()
                for name, means in measured.items()
            }

        return measured_by_group(self._subgroups, of)


def _change(name: str, found: Estimate) -> dict[str, Any]:
    """A difference for JSON; that a share is the same of all prompts, such as none, says nothing of
    others."""
    if name in SHARES and not found.se:
        found = replace(found, low=None, high=None)
    return found.as_dict()


def _kl(inputs: EvalInputs, groups: Sequence[Group], columns: Columns) -> PerSample:
    """KL(π ‖ π_ref) of each completion in nats, by Σ_t k1: log π − log π_ref of the whole."""
    if inputs.is_reference:
        return [[0.0] * len(group.samples) for group in groups]
    pairs = zip(columns.of(LOGPROB, groups), columns.of(REFERENCE, groups), strict=True)
    return [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]
