"""Errors of the sampler and of reward servers, as the gateway's callers are told of them."""

from __future__ import annotations

import logging
import re
import time

from guerdon.client import errors as client
from guerdon.gateway.types import RankingFailed, Unscored
from guerdon.serving import errors
from guerdon.serving.waiting import UNKNOWN_RETRY_SECONDS

logger = logging.getLogger(__name__)

_PROMPT = re.compile(r"items\[\d+\]\.prompt(?:\.conversation|\.formatted_text|\.text)?\.?")
_OF_GATEWAY = (client.Unauthenticated, client.PermissionDenied, client.Unimplemented)
"""What is wrong between the gateway and a service, and no fault of the caller's."""


def time_left(deadline: float) -> float:
    """Seconds until a deadline on `time.monotonic`'s clock.

    Raises:
        DeadlinePassed: there is no time left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise errors.DeadlinePassed("the deadline passed before the answer was found")
    return left


def policy_error(error: client.GuerdonError) -> errors.ServiceError:
    """An error of the sampler; its fields get the names that the caller's request has."""
    match error:
        case client.InvalidArgument():
            violations = error.field_violations
            if not violations:
                return errors.InvalidRequest("request", error.message)
            return errors.InvalidRequest(_field(violations[0].field), violations[0].description)
        case client.Overloaded():
            after = error.retry_after
            wait = UNKNOWN_RETRY_SECONDS if after is None else after
            return errors.Overloaded(f"the sampler sheds work: {error.message}", retry_after=wait)
        case client.DeadlineExceeded():
            return errors.DeadlinePassed("the sampler did not answer before the deadline")
        case client.Aborted():
            return errors.Interrupted(f"the sampler: {error.message}")
        case client.FailedPrecondition() | client.NotFound():
            return errors.Unsupported(f"the sampler: {error.message}")
        case client.Internal():
            return errors.ComputeFailed(f"the sampler: {error.message}")
        case _:
            if isinstance(error, _OF_GATEWAY):
                logger.error("the sampler refuses the gateway: %s", error.message)
            return errors.Unavailable(f"the sampler is away: {error.message}")


def reward_error(
    model: str, error: client.GuerdonError
) -> RankingFailed | errors.Unsupported | Unscored:
    """An error of a reward server: of the one answer, of all now, or of all that will ever be."""
    if isinstance(error, client.InvalidArgument | client.Internal):
        return Unscored(f"{model} gives no score: {error.message}")
    if isinstance(error, client.FailedPrecondition):
        return errors.Unsupported(f"{model} can't rank these answers: {error.message}")
    if isinstance(error, _OF_GATEWAY):
        logger.error("the reward server of %s refuses the gateway: %s", model, error.message)
    return RankingFailed(f"the rewards of {model} are away: {error.message}")


def _field(path: str) -> str:
    """A field of the sampler's request, as the caller's request names it."""
    if path.startswith("options."):
        return path.removeprefix("options.")
    if path.endswith("].n"):
        return "best_of"
    if path.endswith("].seed"):
        return "seed"
    return _PROMPT.sub("", path) or "prompt"
