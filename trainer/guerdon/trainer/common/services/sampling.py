"""Groups from the policy sampler: tokens as they were drawn, checked before they are used."""

from __future__ import annotations

from typing import Any

import numpy as np

from guerdon.client import FailedPrecondition, GuerdonError, Retry, TokenIds
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import Completion, GenerateItem, PolicyInfo
from guerdon.trainer.common.errors import SettingsError, TrainingError
from guerdon.trainer.common.services.credentials import Credentials
from guerdon.trainer.common.services.patience import Patience
from guerdon.trainer.common.services.policy_text import answer_text
from guerdon.trainer.common.services.types import Group, Sample, Task

_ROUNDING = 1e-4
"""How far above 0 a log-probability in float32 may come out."""


class StaleSampler(Exception):
    """The sampler's weights are older than was asked for: it was restarted."""


def sampling_seed(seed: int, stream: int, uid: int) -> int:
    """The seed of a task's completions, from the run's: 63 bits, independent for each use."""
    state = np.random.SeedSequence([seed, stream, uid]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class GroupSampler:
    """Draws the completions of one task.

    Args:
        address: HOST:PORT of the sampler.
        tokenizer: the policy's, of `transformers`: decodes what reward models are asked about.
        max_tokens: of a completion.
        temperature: of sampling, where a call doesn't say.
        patience: seconds that the sampler may stay away.
        request_timeout: seconds for one attempt.
        credentials: shown to the sampler.
    """

    def __init__(
        self,
        address: str,
        tokenizer: Any,
        *,
        max_tokens: int,
        temperature: float,
        patience: float,
        request_timeout: float,
        credentials: Credentials = Credentials(),  # noqa: B008 - frozen
    ) -> None:
        # Our own patience counts and bounds the retries, so the client's are off.
        how: dict[str, Any] = {
            "timeout": request_timeout,
            "retry": Retry(attempts=1),
            "tls": credentials.tls,
        }
        self.client = AsyncPolicyClient(address, token=credentials.token, **how)
        """The connection, which the publisher shares."""
        self.updates = self.client
        """The client for updates: the one that samples, or one with another token."""
        if credentials.update_token != credentials.token:
            self.updates = AsyncPolicyClient(address, token=credentials.update_token, **how)
        self.patience = Patience("the sampler", address, patience)
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._temperature = temperature

    async def check(self, version: int, longest_prompt: int, largest_id: int) -> PolicyInfo:
        """What the sampler says of itself, when it can do what will be asked.

        Args:
            version: of the weights that it must serve.
            longest_prompt: tokens.
            largest_id: of any prompt's tokens.

        Raises:
            TrainingError: it can't, stayed away or refused.
        """
        policy = await self.patience.insist(self.client.get_policy)
        where = f"the sampler at {self.patience.address}"
        if policy.weight_version < version:
            raise TrainingError(
                f"{where} serves version {policy.weight_version}, older than the {version} that "
                "was published"
            )
        if longest_prompt + self._max_tokens > policy.max_tokens:
            raise SettingsError(
                f"{where} takes {policy.max_tokens} tokens; the longest prompt has "
                f"{longest_prompt}, and max_tokens is {self._max_tokens}"
            )
        if largest_id >= policy.vocab_size:
            raise SettingsError(
                f"{where} has {policy.vocab_size} tokens, and a prompt has the token {largest_id}: "
                "it serves another policy"
            )
        return policy

    async def sample(
        self,
        task: Task,
        n: int,
        *,
        min_version: int,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Group:
        """The completions of one task, without rewards.

        When the sampler breaks off, all are drawn anew: keeping those that had ended would
        favour the short ones.

        Args:
            task: what to complete.
            n: how many.
            min_version: of the weights, at least.
            temperature: the run's when not given.
            seed: makes the draw repeatable.

        Raises:
            StaleSampler: its weights are older than `min_version`.
            TrainingError: it stayed away or refused, or its answer can't be right.
        """
        heat = self._temperature if temperature is None else temperature

        async def call() -> list[Completion]:
            item = GenerateItem(TokenIds(task.prompt_ids_P.tolist()), n=n, seed=seed)
            found = self.client.generate(
                [item], max_tokens=self._max_tokens, temperature=heat, min_version=min_version
            )
            return [completion async for completion in found]

        try:
            completions = await self.patience.ask(call)
        except FailedPrecondition as error:
            raise StaleSampler(error.message) from error
        except GuerdonError as error:
            raise self.patience.refused(error) from error
        return self._group(task, n, min_version, completions)

    def _group(self, task: Task, n: int, min_version: int, completions: list[Completion]) -> Group:
        places = sorted(completion.sample for completion in completions)
        if places != list(range(n)):
            raise TrainingError(f"the sampler sent completions {places} where {n} were asked for")
        ordered = sorted(completions, key=lambda completion: completion.sample)
        return Group(task, [self._sample(task, min_version, one) for one in ordered])

    def _sample(self, task: Task, min_version: int, completion: Completion) -> Sample:
        ids, finished = completion.token_ids.tolist(), completion.finished
        sample = Sample(
            task_uid=task.uid,
            index=completion.sample,
            prompt_ids_P=task.prompt_ids_P,
            response_ids_T=np.asarray(completion.token_ids, dtype=np.int32),
            behaviour_logprobs_T=np.asarray(completion.logprobs, dtype=np.float32),
            versions_T=np.asarray(completion.versions, dtype=np.int32),
            finished=finished,
            text=task.opening + answer_text(self._tokenizer, ids, finished=finished),
        )
        fault = _fault(sample, min_version, self._max_tokens)
        if not np.array_equal(completion.prompt_token_ids, task.prompt_ids_P):
            fault = fault or "its prompt is not the one that was asked for"
        if fault:
            raise TrainingError(f"the sampler sent a completion that can't be right: {fault}")
        return sample

    async def close(self) -> None:
        """Close the connection."""
        for client in {self.client, self.updates}:
            await client.close()


def _fault(sample: Sample, min_version: int, max_tokens: int) -> str:
    """What is wrong with a sample; empty when nothing is."""
    logprobs_T = sample.behaviour_logprobs_T
    if not 0 < sample.tokens <= max_tokens:
        return f"{sample.tokens} tokens, where 1 to {max_tokens} were asked for"
    if not sample.tokens == len(logprobs_T) == len(sample.versions_T):
        return "tokens, log-probabilities and versions differ in number"
    if not (np.isfinite(logprobs_T).all() and (logprobs_T <= _ROUNDING).all()):
        return "a log-probability is not a finite number up to 0"
    if sample.oldest_version < min_version:
        return f"version {sample.oldest_version}, where at least {min_version} was asked for"
    return ""
