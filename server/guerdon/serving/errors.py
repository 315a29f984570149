"""The errors that a service can answer with.

Everything below the wire raises these and knows nothing of status codes;
`guerdon.serving.status` maps them to gRPC and HTTP, and nothing else does.

    ServiceError
     ├─ InvalidRequest      a field is wrong
     │   └─ TooLarge        more than there is ever room for
     ├─ NotFound            no such model
     ├─ Unsupported         the model cannot do what is asked
     ├─ CheckpointRefused   a checkpoint would give wrong scores
     ├─ Outdated            what is served is older than what was asked for
     ├─ UpdateRefused       new weights are not what they should be
     ├─ Interrupted         something else came in between: begin again
     ├─ Overloaded          come back later
     ├─ DeadlinePassed      too late to be of use
     ├─ Cancelled           the caller has left
     ├─ Unavailable         starting, or draining
     │   └─ WorkLost        the engine ended with it
     ├─ Unauthenticated     no credential, or a wrong one
     ├─ PermissionDenied    a credential that does not allow it
     └─ ComputeFailed       the model raised, or its score is not finite
"""

from __future__ import annotations


class ServiceError(Exception):
    """Any error that a caller may be told about; its text is one plain sentence."""


class InvalidRequest(ServiceError):
    """A field of the request is wrong.

    Args:
        field: path of the field, such as `items[0].responses[2].token_ids`.
        reason: what is wrong with it, without the field's name.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason

    def under(self, prefix: str) -> InvalidRequest:
        """This error, seen from the message that holds the field."""
        return InvalidRequest(f"{prefix}.{self.field}" if self.field else prefix, self.reason)


class TooLarge(InvalidRequest):
    """A request that has no room even when nothing else waits: never worth a retry."""


class NotFound(ServiceError):
    """No model of that name or revision."""


class Unsupported(ServiceError):
    """The request is well formed, but this model cannot do what it asks."""


class CheckpointRefused(ServiceError):
    """A checkpoint that would give wrong scores, or that cannot be trusted."""


class Outdated(ServiceError):
    """What is served is older than what the caller asked for."""


class UpdateRefused(ServiceError):
    """New weights are not what they should be; those before them still serve."""


class Interrupted(ServiceError):
    """Something else has the place, or ended the work: begin again."""


class Overloaded(ServiceError):
    """More work than can be queued.

    Args:
        reason: one sentence.
        retry_after: seconds until there should be room.
    """

    def __init__(self, reason: str, *, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class DeadlinePassed(ServiceError):
    """The caller's deadline passed before the work was done."""


class Cancelled(ServiceError):
    """The caller has left."""


class Unavailable(ServiceError):
    """The server is starting or draining."""


class WorkLost(Unavailable):
    """The engine ended with the work, which may have been what ended it."""


class Unauthenticated(ServiceError):
    """No credential, or a wrong one."""


class PermissionDenied(ServiceError):
    """The caller is known, and may not do this."""


class EngineDied(RuntimeError):
    """Nothing can be computed any more: the process must be started anew. No caller's error."""


class ComputeFailed(ServiceError):
    """The model raised, or gave a score that is not a finite number."""
