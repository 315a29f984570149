"""The light client of Guerdon's reward service: no torch.

    from guerdon.client import Item, RewardClient

    with RewardClient("localhost:50051") as rewards:
        print(rewards.score("helpful", [Item("What is rain?", ["Water.", "Mud."])]).scores)

`AsyncRewardClient` is the same for asyncio. `guerdon.client.testing` has a fake server for
users' tests.
"""

from guerdon.client.admin import AsyncAdminClient
from guerdon.client.aio import AsyncRewardClient
from guerdon.client.config import TLS, Clock, Limits, Retry, ScoringOptions
from guerdon.client.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    GuerdonError,
    Internal,
    InvalidArgument,
    MixedRevisions,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from guerdon.client.policy import AsyncPolicyClient
from guerdon.client.policy_types import (
    Canary,
    Completion,
    CompletionProgress,
    GenerateItem,
    Nccl,
    PolicyInfo,
    SharedPath,
    TensorSpec,
    VersionSpan,
    WeightUpdate,
)
from guerdon.client.sync import AdminClient, PolicyClient, RewardClient
from guerdon.client.types import (
    AttributeInfo,
    FormattedText,
    Item,
    ItemScores,
    ModelInfo,
    Promotion,
    Prompt,
    RankedCandidate,
    RankResult,
    Response,
    Score,
    ScoreResult,
    ScoringInfo,
    StepScore,
    StreamResult,
    Timing,
    TokenIds,
)
from guerdon.data import Conversation

__all__ = [
    "TLS",
    "Aborted",
    "AdminClient",
    "AsyncAdminClient",
    "AsyncPolicyClient",
    "AsyncRewardClient",
    "AttributeInfo",
    "Canary",
    "Cancelled",
    "Clock",
    "Completion",
    "CompletionProgress",
    "Conversation",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "FormattedText",
    "GenerateItem",
    "GuerdonError",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemScores",
    "Limits",
    "MixedRevisions",
    "ModelInfo",
    "Nccl",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PolicyClient",
    "PolicyInfo",
    "Promotion",
    "Prompt",
    "RankResult",
    "RankedCandidate",
    "Response",
    "Retry",
    "RewardClient",
    "Score",
    "ScoreResult",
    "ScoringInfo",
    "ScoringOptions",
    "SharedPath",
    "StepScore",
    "StreamResult",
    "TensorSpec",
    "Timing",
    "TokenIds",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VersionSpan",
    "WeightUpdate",
]
