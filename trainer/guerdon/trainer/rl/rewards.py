"""Rewards of groups: from served models, from verifiers, or a weighted sum of both.

A group is one item of one Score call, so that the server computes its prompt once. A response
without text (nothing but the ending token) is sent as it is: the server scores the empty turn,
which is what the policy said.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guerdon.client import AsyncRewardClient, GuerdonError, Item, NotFound, Retry, Unavailable
from guerdon.trainer.errors import SettingsError, TrainingError
from guerdon.trainer.rl.credentials import Credentials
from guerdon.trainer.rl.services import Patience, ServiceRefused, parse_address
from guerdon.trainer.rl.types import Group, PromptRow, Sample
from guerdon.trainer.rl.verifiers import WeightedVerifier, parse_verifier, split_weight


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """A served reward model, as the settings name it."""

    name: str
    """Of its part of the reward: the model's name, without revision."""
    weight: float
    address: str
    """HOST:PORT."""
    model: str
    """A name, an alias, or `name@revision`."""

    def described(self, *, normalized: bool) -> str:
        """The model, and whether its scores are normalised: without its server's address."""
        return f"{self.model} (normalised)" if normalized else self.model


def parse_reward(spec: str, setting: str = "reward") -> RewardSpec:
    """The reward model of `HOST:PORT/MODEL` or `WEIGHT*HOST:PORT/MODEL`.

    Raises:
        SettingsError: it is none of these.
    """
    weight, rest = split_weight(spec, setting)
    address, slash, model = rest.strip().partition("/")
    name = model.partition("@")[0]
    if not slash or not name:
        raise SettingsError(f"{setting}: {spec!r} is not HOST:PORT/MODEL or WEIGHT*HOST:PORT/MODEL")
    return RewardSpec(name, weight, parse_address(address, setting), model)


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
    ) -> None:
        self.name = spec.name
        self._normalize = normalize
        self.weight = spec.weight
        self.patience = Patience(f"the reward model {spec.model!r}", spec.address, patience)
        self.revision = ""
        """Empty until `start`."""
        self.model = ""
        """The model's name on the server, after aliases."""
        self._spec = spec
        # Our own patience counts and bounds the retries, so the client's are off.
        self._client = AsyncRewardClient(
            spec.address, token=credentials.token, tls=credentials.tls, timeout=request_timeout,
            retry=Retry(attempts=1),
        )  # fmt: skip

    async def start(self) -> None:
        """Pin the revision.

        Raises:
            TrainingError: the model can't be had, or has another revision than a resumed run's.
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
        self.revision = info.revision

    async def score(self, row: PromptRow, samples: Sequence[Sample]) -> list[float]:
        """The score of each response: raw, or normalised where that was asked for.

        Raises:
            TrainingError: there is none to be had, or a number that can't be right.
        """
        item = Item([dict(turn) for turn in row.turns], [sample.text for sample in samples])

        async def call() -> list[float]:
            try:
                result = await self._client.score(
                    f"{self.model}@{self.revision}", [item],
                    priority="batch", truncation="reject", normalize=self._normalize,
                )  # fmt: skip
            except NotFound as error:
                await self._still_there(error)
            scores = result.items[0].values
            _check_scores(scores, len(samples), self.name)
            return scores

        try:
            return await self.patience.ask(call)
        except GuerdonError as error:
            fault = self.patience.refused(error)
            raise ServiceRefused(f"{fault} (the prompt is row {row.index + 1})") from error

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
        verifiers: `[WEIGHT*]NAME[:ARGUMENT]`.
        patience: seconds that a server may stay away.
        request_timeout: seconds for one attempt.
        normalize: take served models' scores in standard deviations above the mean of their
            training set's.
        setting: what `rewards` is called in errors.
        credentials: shown to the reward servers.

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
    ) -> None:
        specs = [parse_reward(spec, setting) for spec in rewards]
        self.verifiers: list[WeightedVerifier] = [parse_verifier(spec) for spec in verifiers]
        named = [(spec.name, spec.weight) for spec in specs]
        named += [(verifier.name, verifier.weight) for verifier in self.verifiers]
        self.weights = dict(named)
        """By the parts' names."""
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
            )
            for spec in specs
        ]

    @property
    def faults_survived(self) -> int:
        """Times that a server was away and came back."""
        return sum(served.patience.faults_survived for served in self.served)

    async def start(self) -> None:
        """Find the models and pin their revisions.

        Raises:
            TrainingError: one can't be had.
        """
        await _together([served.start() for served in self.served])

    async def score(self, group: Group) -> Group:
        """Fill in the parts and the reward of every sample; returns the group.

        Raises:
            TrainingError: a reward can't be had.
        """
        parts = await self.parts(group.task.row, group.samples)
        for sample, values in zip(group.samples, parts, strict=True):
            sample.parts = values
            sample.reward = sum(self.weights[name] * value for name, value in values.items())
        return group

    async def parts(self, row: PromptRow, samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Every part of each sample's reward, by its name, unweighted; changes nothing.

        Raises:
            TrainingError: one can't be had.
        """
        asked = [served.score(row, samples) for served in self.served]
        asked += [_verify(verifier, row, samples) for verifier in self.verifiers]
        columns = await _together(asked)
        return [
            dict(zip(self.weights, values, strict=True)) for values in zip(*columns, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """The pinned revisions, as JSON can hold them."""
        return {served.name: served.revision for served in self.served}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Pin the revisions of a saved run; `start` refuses others. Call it before `start`."""
        for served in self.served:
            served.revision = state.get(served.name, "")

    async def close(self) -> None:
        """Close the connections and end the verifiers' processes."""
        for served in self.served:
            await served.close()
        for verifier in self.verifiers:
            await asyncio.to_thread(verifier.verifier.close)


async def _verify(
    verifier: WeightedVerifier, row: PromptRow, samples: Sequence[Sample]
) -> list[float]:
    def work() -> list[float]:
        return [verifier.verifier.verify(row, s.text, s.tokens) for s in samples]

    scores = await asyncio.to_thread(work)
    _check_scores(scores, len(samples), verifier.name)
    return scores


def _check_scores(scores: Sequence[float], count: int, name: str) -> None:
    """No reward is made up: as many numbers as responses, and every one finite."""
    if len(scores) != count:
        raise TrainingError(f"the reward {name!r} gave {len(scores)} scores for {count} responses")
    for score in scores:
        if not math.isfinite(score):
            raise TrainingError(f"the reward {name!r} gave {score}, which is not a finite number")


async def _together(work: Sequence[Any]) -> list[Any]:
    """The results of all; when one fails the others are cancelled, and its own error is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
