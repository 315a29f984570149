"""The first and the last message of an update, checked: what may be told before any byte came."""

from __future__ import annotations

import math

import numpy as np

from guerdon.sampler import checks
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.types import Canary, EngineInfo, NcclSource, TensorSpec
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.wire.convert import check_count
from guerdon.v1 import policy_pb2

DTYPES = ("float32", "bfloat16", "float16")
SHA256_BYTES = 32
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 2**48


def check_begin(message: policy_pb2.BeginUpdate, limits: RequestLimits, serving: int) -> None:
    """Refuse a `begin` that can't be.

    Args:
        serving: the version of the weights that serve.

    Raises:
        InvalidRequest: names the field.
    """
    source = message.WhichOneof("source")
    if source is None:
        raise InvalidRequest("begin.source", "one of stream, shared_path and nccl is required")
    if message.version < 1:
        raise InvalidRequest(
            "begin.version", "must be at least 1: 0 is what the sampler was started with"
        )
    if message.version <= serving and not message.reset:
        raise InvalidRequest(
            "begin.version",
            f"is {message.version}, and version {serving} serves: it must be greater, or set reset",
        )
    if source != "shared_path" and not message.tensors:
        raise InvalidRequest("begin.tensors", "at least one is required")
    if source == "nccl":
        _check_nccl(message.nccl)
    check_count("begin.tensors", len(message.tensors), limits.max_tensors)


def _check_nccl(message: policy_pb2.NcclSource) -> None:
    if not message.master_address:
        raise InvalidRequest("begin.nccl.master_address", "is required")
    if not 1 <= message.master_port <= 65535:
        raise InvalidRequest("begin.nccl.master_port", f"is {message.master_port}, no port")
    if not 1 <= message.rank_offset < message.world_size:
        raise InvalidRequest(
            "begin.nccl.rank_offset",
            f"is {message.rank_offset}, it must be between 1 and world_size - 1",
        )


def nccl_source(message: policy_pb2.BeginUpdate) -> NcclSource:
    """The group that an update by NCCL names."""
    source = message.nccl
    return NcclSource(
        source.master_address, source.master_port, source.world_size, source.rank_offset
    )


def tensor_specs(message: policy_pb2.BeginUpdate) -> tuple[TensorSpec, ...]:
    """The tensors that are announced.

    Raises:
        InvalidRequest: names the tensor.
    """
    found: list[TensorSpec] = []
    names: set[str] = set()
    for place, tensor in enumerate(message.tensors):
        field = f"begin.tensors[{place}]"
        if not tensor.name:
            raise InvalidRequest(f"{field}.name", "is required")
        if tensor.name in names:
            raise InvalidRequest(f"{field}.name", f"{tensor.name} is there twice")
        if tensor.dtype not in DTYPES:
            raise InvalidRequest(
                f"{field}.dtype",
                f"of {tensor.name} is {tensor.dtype!r}, it must be one of {', '.join(DTYPES)}",
            )
        if len(tensor.shape) > _MAX_DIMENSIONS or math.prod(tensor.shape) > _MAX_ELEMENTS:
            raise InvalidRequest(f"{field}.shape", f"of {tensor.name} is no tensor's size")
        names.add(tensor.name)
        found.append(TensorSpec(tensor.name, tensor.dtype, tuple(tensor.shape)))
    return tuple(found)


def check_commit(message: policy_pb2.CommitUpdate, *, checksum: bool) -> None:
    """Refuse a `commit` that can't be.

    Args:
        checksum: whether there must be one.
    """
    if checksum and len(message.sha256) != SHA256_BYTES:
        raise InvalidRequest(
            "commit.sha256", f"has {len(message.sha256)} bytes, a SHA-256 has {SHA256_BYTES}"
        )
    if not 0 <= message.mean_tolerance < math.inf:
        raise InvalidRequest(
            "commit.mean_tolerance", f"is {message.mean_tolerance}, it must be finite, 0 or more"
        )


def canaries(
    message: policy_pb2.CommitUpdate, limits: RequestLimits, info: EngineInfo
) -> tuple[Canary, ...]:
    """The sequences to be compared.

    Raises:
        InvalidRequest: names the canary.
    """
    check_count("commit.canaries", len(message.canaries), limits.max_canaries)
    total = sum(len(canary.token_ids) for canary in message.canaries)
    if total > limits.max_canary_tokens:
        raise InvalidRequest(
            "commit.canaries", f"hold {total} tokens, the limit is {limits.max_canary_tokens}"
        )
    return tuple(
        _canary(canary, f"commit.canaries[{place}]", info)
        for place, canary in enumerate(message.canaries)
    )


def _canary(message: policy_pb2.Canary, field: str, info: EngineInfo) -> Canary:
    # The engine draws one token after the sequence, for which there must be room.
    if not 2 <= len(message.token_ids) < info.max_tokens:
        raise InvalidRequest(
            f"{field}.token_ids",
            f"there are {len(message.token_ids)}, it must be between 2 and {info.max_tokens - 1}",
        )
    wide = np.asarray(message.token_ids, dtype=np.int64)
    checks.check_tokens(wide, f"{field}.token_ids", info.vocab_size)
    logprobs = np.asarray(message.logprobs, dtype=np.float32)
    if len(logprobs) != len(wide) - 1:
        raise InvalidRequest(
            f"{field}.logprobs",
            f"there are {len(logprobs)} for {len(wide)} tokens, it must be one fewer",
        )
    if not np.isfinite(logprobs).all() or (logprobs > 1e-3).any():
        raise InvalidRequest(f"{field}.logprobs", "must be finite and at most 0")
    return Canary(wide.astype(np.int32), logprobs)
