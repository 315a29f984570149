"""Policy messages to values and back, checked both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guerdon.client import _wire
from guerdon.client.config import check_number
from guerdon.client.errors import Internal, invalid
from guerdon.client.policy_types import (
    Canary,
    Completion,
    CompletionProgress,
    FinishReason,
    GenerateItem,
    Nccl,
    PolicyInfo,
    SharedPath,
    TensorSpec,
    VersionSpan,
    WeightUpdate,
)
from guerdon.v1 import policy_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_REASONS: dict[int, FinishReason] = {
    policy_pb2.FINISH_REASON_STOP: "stop",
    policy_pb2.FINISH_REASON_LENGTH: "length",
}
_LARGEST_FLOAT32, _SMALLEST_FLOAT32 = 3.4e38, 1.2e-38
_ROUNDING = 1e-3
"""How far above 0 a log-probability may come out."""


def options(
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    stop_token_ids: Sequence[int],
    stop: Sequence[str],
    *,
    ignore_eos: bool,
) -> policy_pb2.SamplingOptions:
    """The options of a call.

    Raises:
        InvalidArgument: one cannot be.
    """
    check_number("options.max_tokens", max_tokens, 1, 2**31 - 1, whole=True)
    check_number("options.temperature", temperature, 0, _LARGEST_FLOAT32)
    check_number("options.top_p", top_p, _SMALLEST_FLOAT32, 1)
    check_number("options.top_k", top_k, 0, 2**31 - 1, whole=True)
    if isinstance(stop, str):
        raise invalid("options.stop", "must be a list of texts")
    return policy_pb2.SamplingOptions(
        temperature=temperature,
        max_tokens=max_tokens,
        top_p=top_p,
        top_k=top_k,
        stop_token_ids=stop_token_ids,
        ignore_eos=ignore_eos,
        stop=stop,
    )


class Pending:
    """The completions of a call that have not come yet.

    Raises:
        InvalidArgument: an item cannot be.
    """

    def __init__(self, items: Sequence[GenerateItem]) -> None:
        if not items:
            raise invalid("items", "must have at least one")
        self._items = list(items)
        for place, item in enumerate(self._items):
            check_number(f"items[{place}].n", item.n, 1, 2**31 - 1, whole=True)
            if item.seed is not None:
                check_number(f"items[{place}].seed", item.seed, 0, 2**64 - 1, whole=True)
            check_number(f"items[{place}].drawn", item.drawn, 0, 2**32 - 1, whole=True)
        self._prompts = [_wire.prompt(item.prompt) for item in self._items]
        self._came: list[set[int]] = [set() for _ in self._items]
        self._asked: list[tuple[int, Sequence[int]]] = []
        """Each item of the last request: its place in the call, and its completions' numbers."""
        self._seen: set[tuple[int, int]] = set()

    @property
    def complete(self) -> bool:
        """Whether all have come."""
        pairs = zip(self._items, self._came, strict=True)
        return all(len(came) == item.n for item, came in pairs)

    def request(self, template: policy_pb2.GenerateRequest) -> policy_pb2.GenerateRequest:
        """The request for what is missing; `template` is one without items."""
        request = policy_pb2.GenerateRequest()
        request.CopyFrom(template)
        self._asked, self._seen = [], set()
        for place, (item, came) in enumerate(zip(self._items, self._came, strict=True)):
            if len(came) == item.n:
                continue
            # Without a seed any draw is as good: only those that have not come are asked for.
            every = range(item.n)
            samples = every if item.seed is not None else [i for i in every if i not in came]
            self._asked.append((place, samples))
            request.items.add(
                id=item.id,
                prompt=self._prompts[place],
                seed=item.seed,
                n=len(samples),
                drawn=item.drawn,
            )
        return request

    def take(self, reply: policy_pb2.GenerateResponse) -> Completion | None:
        """A reply as a completion; None when it had come before.

        Raises:
            Internal: it cannot be right.
        """
        place, sample = self._number(reply)
        if (reply.item, reply.sample) in self._seen:
            raise Internal(f"completion {reply.sample} of item {reply.item} came twice")
        self._seen.add((reply.item, reply.sample))
        if sample in self._came[place]:
            return None
        completion = _completion(reply, place, sample, self._items[place].id)
        self._came[place].add(sample)
        return completion

    def progress(
        self, reply: policy_pb2.GenerateResponse, max_tokens: int
    ) -> list[CompletionProgress]:
        """How far completions have come that had not come before.

        Raises:
            Internal: it cannot be right.
        """
        found = []
        for each in reply.progress:
            place, sample = self._number(each)
            if each.tokens > max_tokens:
                raise Internal(f"a completion of item {each.item} has {each.tokens} tokens so far")
            if sample not in self._came[place]:
                found.append(CompletionProgress(place, sample, each.tokens))
        return found

    def _number(
        self, of: policy_pb2.GenerateResponse | policy_pb2.CompletionProgress
    ) -> tuple[int, int]:
        """The item's place in the call, and the completion's number there.

        Raises:
            Internal: it was not asked for.
        """
        if of.item >= len(self._asked):
            raise Internal(f"a completion of item {of.item}, which was not asked for")
        place, samples = self._asked[of.item]
        if of.sample >= len(samples):
            raise Internal(f"completion {of.sample} of item {of.item} was not asked for")
        return place, samples[of.sample]

    def check_complete(self) -> None:
        """Refuse a stream that ended well without all completions."""
        if not self.complete:
            missing = sum(i.n - len(c) for i, c in zip(self._items, self._came, strict=True))
            raise Internal(f"the stream ended, but {missing} completions have not come")


def _completion(reply: policy_pb2.GenerateResponse, place: int, sample: int, id: str) -> Completion:
    import numpy as np  # only who draws completions needs it

    where = f"completion {sample} of item {place}"
    logprobs = np.array(reply.logprobs, dtype=np.float32)
    spans = tuple(VersionSpan(s.version, s.start, s.end) for s in reply.spans)
    if len(logprobs) != len(reply.token_ids) or not len(logprobs):
        raise Internal(
            f"{where} has {len(reply.token_ids)} tokens and {len(logprobs)} log-probabilities"
        )
    if not np.isfinite(logprobs).all() or logprobs.max() > _ROUNDING:
        raise Internal(f"{where} has a log-probability that is not a finite number up to 0")
    edges = [0, *(span.end for span in spans)]
    whole = bool(spans) and edges[-1] == len(logprobs)
    pairs = zip(spans, edges, strict=False)
    if not whole or any(s.start != end or s.end <= s.start for s, end in pairs):
        raise Internal(f"{where} has version spans that do not cover its tokens in order")
    if max(span.version for span in spans) >= 2**63:
        raise Internal(f"{where} has a version that no update can have")
    reason = _REASONS.get(reply.finish_reason)
    if reason is None:
        raise Internal(f"{where} does not say why it ended")
    return Completion(
        item=place,
        sample=sample,
        id=id,
        token_ids=_ids(reply.token_ids, where),
        logprobs=logprobs,
        finish_reason=reason,
        spans=spans,
        text=reply.text,
        stop_text=reply.stop_text,
        prompt_token_ids=_ids(reply.prompt_token_ids, where),
    )


def _ids(values: Sequence[int], where: str) -> npt.NDArray[np.int32]:
    import numpy as np

    ids = np.array(values, dtype=np.uint32)
    if len(ids) and ids.max() >= 2**31:
        raise Internal(f"{where} has the token {ids.max()}, which no vocabulary has")
    return ids.astype(np.int32)


def tensor_bytes(spec: TensorSpec) -> int:
    """The size of a tensor in bytes.

    Raises:
        InvalidArgument: its type is unknown.
    """
    if spec.dtype not in _DTYPE_BYTES:
        known = ", ".join(_DTYPE_BYTES)
        raise invalid("specs", f"{spec.name} is {spec.dtype}, it must be one of {known}")
    return math.prod(spec.shape) * _DTYPE_BYTES[spec.dtype]


def begin(
    version: int, source: Any, specs: Sequence[TensorSpec], *, reset: bool
) -> policy_pb2.BeginUpdate:
    """The message that opens an update."""
    check_number("version", version, 1, 2**63 - 1, whole=True)
    message = policy_pb2.BeginUpdate(version=version, reset=reset)
    for spec in specs:
        tensor_bytes(spec)
        message.tensors.add(name=spec.name, dtype=spec.dtype, shape=spec.shape)
    if isinstance(source, SharedPath):
        message.shared_path.path = str(source.path)
    elif isinstance(source, Nccl):
        message.nccl.master_address = source.master_address
        message.nccl.master_port = source.master_port
        message.nccl.world_size = source.world_size
        message.nccl.rank_offset = source.rank_offset
    else:
        if not specs:
            raise invalid("specs", "must name every tensor")
        message.stream.SetInParent()
    return message


def canary(value: Canary) -> policy_pb2.Canary:
    """A canary as a message."""
    if len(value.token_ids) < 2 or len(value.logprobs) != len(value.token_ids) - 1:
        raise invalid("canaries", "a canary has at least two tokens, and one number fewer")
    return policy_pb2.Canary(
        token_ids=[int(i) for i in value.token_ids], logprobs=[float(x) for x in value.logprobs]
    )


def update(reply: policy_pb2.UpdateWeightsResponse) -> WeightUpdate:
    """What an update's reply says."""
    return _wire.record(
        WeightUpdate,
        reply,
        receive_seconds=reply.receive.ToMicroseconds() / 1e6,
        pause_seconds=reply.pause.ToMicroseconds() / 1e6,
    )


def policy_info(reply: policy_pb2.GetPolicyResponse) -> PolicyInfo:
    """What a sampler says of itself."""
    return _wire.record(PolicyInfo, reply)
