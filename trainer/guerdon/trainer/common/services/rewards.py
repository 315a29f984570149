"""Rewards of groups: from served models, from verifiers, or a weighted sum of both.

A group is one item of one Score call, so that the server computes its prompt once. A response
without text (nothing but the ending token) is sent as it is: the server scores the empty turn,
which is what the policy said.

A response that a model refuses (no step marker in it, too long) is left out of the call, and gets
the penalty of the settings. It is counted, and neither kept by RFT nor paired.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from guerdon.client import (
    AsyncRewardClient,
    GuerdonError,
    InvalidArgument,
    NotFound,
    Retry,
    Unavailable,
)
from guerdon.client.types import ModelInfo
from guerdon.together import together
from guerdon.trainer.common.errors import OutputError, SettingsError, TrainingError
from guerdon.trainer.common.services.credentials import Credentials
from guerdon.trainer.common.services.patience import Patience, ServiceRefused
from guerdon.trainer.common.services.policy_text import text_item
from guerdon.trainer.common.services.reward_requests import RequestRules
from guerdon.trainer.common.services.reward_specs import RewardSpec, parse_reward
from guerdon.trainer.common.services.types import Group, PromptRow, Sample
from guerdon.trainer.common.services.verifiers import WeightedVerifier, parse_verifier

logger = logging.getLogger(__name__)

_HOPELESS = 100
"""Completions that a model may refuse before it has scored one."""
_RESPONSE = re.compile(r"items\[0\]\.responses\[(\d+)\]")


class ServedReward:
    """One reward model on a server, pinned to the revision that it has when the run begins."""

    def __init__(
        self,
        spec: RewardSpec,
        *,
        patience: float,
        request_timeout: float,
        normalize: bool = False,
        credentials: Credentials = Credentials(),  # noqa: B008 - frozen
        rules: RequestRules = RequestRules(),  # noqa: B008 - frozen
    ) -> None:
        self.name = spec.name
        self._normalize = normalize
        self.weight = spec.weight
        self.patience = Patience(f"the reward model {spec.model!r}", spec.address, patience)
        self.revision = ""
        """Empty until `start`."""
        self.model = ""
        """The model's name on the server, after aliases."""
        self.refusals = 0
        """Completions that it refused."""
        self.dropped = 0
        """Scores that don't depend on all of the text: its chat template leaves some out."""
        self._scored = False
        self._info: ModelInfo | None = None
        self._rules = rules
        self._spec = spec
        # Our own patience counts and bounds the retries, so the client's are off.
        self._client = AsyncRewardClient(
            spec.address,
            token=credentials.token,
            tls=credentials.tls,
            timeout=request_timeout,
            retry=Retry(attempts=1),
        )

    async def start(self) -> None:
        """Pin the revision.

        Raises:
            TrainingError: the model can't be had, has another revision than a resumed run's, or
                takes less than may be drawn.
        """
        info = await self.patience.insist(lambda: self._client.get_model(self._spec.model))
        self.model = info.name
        if self._normalize and (info.mean is None or info.std is None):
            raise TrainingError(
                f"{self.patience.service} at {self.patience.address} has no mean and standard "
                "deviation of its training set's scores, which reward_normalize needs: leave it "
                "out, or write mean and std into its guerdon.json"
            )
        if self.revision and self.revision != info.revision:
            raise self._other_revision(info.revision)
        self._rules.check(info, f"{self.patience.service} at {self.patience.address}")
        self.revision, self._info = info.revision, info

    async def score(self, row: PromptRow, samples: Sequence[Sample]) -> list[float | None]:
        """The score of each response, raw or normalised; None where the model refuses it.

        Raises:
            TrainingError: there is none to be had, or a number that can't be right.
        """
        found: list[float | None] = [None] * len(samples)
        left = list(range(len(samples)))
        while left:
            try:
                scores = await self.patience.ask(lambda: self._ask(row, [samples[i] for i in left]))
            except GuerdonError as error:
                place = _response_at_fault(error)
                if place is None or place >= len(left) or self._rules.refused == "stop":
                    raise self._fault(error, row) from error
                self._note(error, row)
                del left[place]
                continue
            self._scored = True
            for i, score in zip(left, scores, strict=True):
                found[i] = score
            break
        return found

    async def _ask(self, row: PromptRow, samples: Sequence[Sample]) -> list[float]:
        text, info = self._rules.text, self._info
        item = text.item(row, samples, info) if text and info else text_item(row, samples)
        left = self._rules.too_long == "prompt-left"
        try:
            result = await self._client.score(
                f"{self.model}@{self.revision}",
                [item],
                priority="batch",
                truncation="prompt_left" if left else "reject",
                normalize=self._normalize,
            )
        except NotFound as error:
            await self._still_there(error)
        scored = result.items[0]
        _check_scores(scored.values, len(samples), self.name)
        self._note_dropped({part for score in scored.scores for part in score.dropped}, row)
        self.dropped += sum(bool(score.dropped) for score in scored.scores)
        return scored.values

    def _note_dropped(self, parts: Collection[str], row: PromptRow) -> None:
        """Say once that scores don't depend on all of the text."""
        if parts and not self.dropped:
            logger.warning(
                "%s has a chat template that leaves out %s of the prompt of row %d or of a "
                "completion to it, so the rewards don't depend on that",
                self.patience.service,
                " and ".join(sorted(parts)).replace("_", " "),
                row.index + 1,
            )

    def _note(self, error: GuerdonError, row: PromptRow) -> None:
        """Count a completion that was refused.

        Raises:
            ServiceRefused: all that the model was asked about so far were.
        """
        self.refusals += 1
        if self.refusals == 1:
            logger.warning(
                "%s refuses a completion to the prompt of row %d, which gets the penalty "
                "(refused_reward); others are counted: %s",
                self.patience.service,
                row.index + 1,
                error.message,
            )
        if not self._scored and self.refusals >= _HOPELESS:
            raise ServiceRefused(
                f"{self.patience.service} at {self.patience.address} refused all of the first "
                f"{self.refusals} completions, so there is nothing to learn: {error.message}"
            ) from error

    def _fault(self, error: GuerdonError, row: PromptRow) -> ServiceRefused:
        return ServiceRefused(f"{self.patience.refused(error)} (the prompt is row {row.index + 1})")

    async def _still_there(self, error: NotFound) -> None:
        """Find out why the pinned revision is not there: replaced, or not loaded yet."""
        try:
            info = await self._client.get_model(self._spec.model)
        except NotFound:
            raise Unavailable(f"its server has no such model: {error.message}") from error
        if info.revision != self.revision:
            raise self._other_revision(info.revision) from error
        raise Unavailable(error.message) from error  # it came back in between

    def _other_revision(self, revision: str) -> TrainingError:
        return TrainingError(
            f"{self.patience.service} at {self.patience.address} is now revision {revision}, and "
            f"the run began with {self.revision}: rewards of two models can't be mixed"
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


class RewardSource:
    """All that gives rewards: `reward` is the weighted sum of `parts`.

    Args:
        rewards: `[WEIGHT*]HOST:PORT/MODEL`.
        verifiers: `[WEIGHT*]NAME[:ARGUMENT]`, `[WEIGHT*]MODULE:FUNCTION` or `[WEIGHT*]https://…`.
        patience: seconds that a server may stay away.
        request_timeout: seconds for one attempt.
        normalize: take served models' scores in standard deviations above the mean of their
            training set's.
        setting: what `rewards` is called in errors.
        credentials: shown to the reward servers.
        rules: how completions are put to the models, and what if one is refused.

    Raises:
        SettingsError: a specification is wrong, or two have one name.
    """

    def __init__(
        self,
        rewards: Sequence[str],
        verifiers: Sequence[str] = (),
        *,
        patience: float,
        request_timeout: float,
        normalize: bool = False,
        setting: str = "reward",
        credentials: Credentials = Credentials(),  # noqa: B008 - frozen
        rules: RequestRules = RequestRules(),  # noqa: B008 - frozen
    ) -> None:
        specs = [parse_reward(spec, setting) for spec in rewards]
        self.verifiers: list[WeightedVerifier] = [
            parse_verifier(
                spec, patience=patience, request_timeout=request_timeout, credentials=credentials
            )
            for spec in verifiers
        ]
        named = [(spec.name, spec.weight) for spec in specs]
        named += [(verifier.name, verifier.weight) for verifier in self.verifiers]
        self.weights = dict(named)
        """The weights by the parts' names."""
        if len(self.weights) != len(named):
            names = ", ".join(repr(name) for name, _ in named)
            raise SettingsError(f"{setting}: two rewards have one name: {names}")
        self.served = [
            ServedReward(
                spec,
                patience=patience,
                request_timeout=request_timeout,
                normalize=normalize,
                credentials=credentials,
                rules=rules,
            )
            for spec in specs
        ]
        self._rules = rules
        self._sources: dict[str, str] = {}
        """What tells each verifier from another of its name, where something does."""

    @property
    def faults_survived(self) -> int:
        """Times that a server was away and came back."""
        served = sum(served.patience.faults_survived for served in self.served)
        return served + sum(one.verifier.faults_survived for one in self.verifiers)

    async def start(self) -> None:
        """Find the models and functions, and pin their revisions.

        Raises:
            TrainingError: one can't be had, or is another than the run began with.
        """
        await together([served.start() for served in self.served])
        for verifier in self.verifiers:
            found = await verifier.verifier.start()
            if self._sources.setdefault(verifier.name, found) != found:
                raise OutputError(
                    f"the reward function {verifier.name!r} has changed since the run began "
                    f"(its source is {found[:12]}, not {self._sources[verifier.name][:12]}): "
                    "rewards of two functions can't be mixed"
                )

    async def score(self, group: Group) -> Group:
        """Fill in the parts and the reward of every sample; returns the group.

        Raises:
            TrainingError: a reward can't be had.
        """
        parts, refused = await self._parts(group)
        for sample, values, odd in zip(group.samples, parts, refused, strict=True):
            sample.parts, sample.refused = values, odd
            sample.reward = self._total(values)
        return group

    async def totals(self, group: Group) -> list[float]:
        """What `score` would make each sample's reward; changes nothing.

        Raises:
            TrainingError: a reward can't be had.
        """
        return [self._total(parts) for parts in (await self._parts(group))[0]]

    def _total(self, parts: Mapping[str, float]) -> float:
        return sum(self.weights[name] * value for name, value in parts.items())

    async def _parts(self, group: Group) -> tuple[list[dict[str, float]], list[bool]]:
        """Every part of each sample's reward, unweighted, and whether one is a penalty."""
        row, samples = group.task.row, group.samples
        asked: list[Any] = [served.score(row, samples) for served in self.served]
        asked += [_verified(verifier, row, samples) for verifier in self.verifiers]
        columns: list[list[float | None]] = await together(asked)
        refused = [None in values for values in zip(*columns, strict=True)]
        whole = [
            self._rules.filled(column, weight)
            for column, weight in zip(columns, self.weights.values(), strict=True)
        ]
        parts = [
            dict(zip(self.weights, values, strict=True)) for values in zip(*whole, strict=True)
        ]
        return parts, refused

    def state(self) -> dict[str, Any]:
        """The pinned revisions and sources, as JSON can hold them."""
        served = {served.name: served.revision for served in self.served}
        return served | {name: source for name, source in self._sources.items() if source}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Pin the revisions of a saved run; `start` refuses others. Call it before `start`."""
        for served in self.served:
            served.revision = state.get(served.name, "")
        names = [verifier.name for verifier in self.verifiers]
        self._sources = {name: state[name] for name in names if name in state}

    async def close(self) -> None:
        """Close the connections and end the verifiers' processes."""
        for served in self.served:
            await served.close()
        for verifier in self.verifiers:
            await verifier.verifier.close()


async def _verified(
    verifier: WeightedVerifier, row: PromptRow, samples: Sequence[Sample]
) -> list[float]:
    scores = await verifier.verifier.score(row, samples)
    _check_scores(scores, len(samples), verifier.name)
    return scores


def _response_at_fault(error: GuerdonError) -> int | None:
    """Which response of the only item a refusal names; None when it is about something else."""
    if not isinstance(error, InvalidArgument):
        return None
    places = [_RESPONSE.match(violation.field) for violation in error.field_violations]
    return next((int(place[1]) for place in places if place), None)


def _check_scores(scores: Sequence[float], count: int, name: str) -> None:
    """No reward is made up: as many numbers as responses, and every one finite."""
    if len(scores) != count:
        raise TrainingError(f"the reward {name!r} gave {len(scores)} scores for {count} responses")
    for score in scores:
        if not math.isfinite(score):
            raise TrainingError(f"the reward {name!r} gave {score}, which is not a finite number")
