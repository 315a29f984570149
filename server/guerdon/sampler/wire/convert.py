"""Between the sampler's messages and the domain's types; names every field at fault."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.sampling import Drawn
from guerdon.sampler.types import (
    FinishReason,
    GenerateItem,
    GenerateRequest,
    PlainText,
    PolicyEngine,
    SamplingOptions,
)
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.prompts import FormattedText, Prompt
from guerdon.serving.wire.convert import check_count, field_values, prompt
from guerdon.v1 import policy_pb2
from guerdon.v1.policy_pb2 import GetPolicyResponse


def generate_request(message: policy_pb2.GenerateRequest, limits: RequestLimits) -> GenerateRequest:
    """What a request asks for; `checks.check_request` looks at the values.

    Raises:
        InvalidRequest: something that is required is missing, or there is too much.
    """
    if not message.HasField("options"):
        raise InvalidRequest("options", "is required")
    check_count("items", len(message.items), limits.max_items)  # before any is looked at
    return GenerateRequest(
        items=[
            _item(item, f"items[{i}]", add_special_tokens=message.add_special_tokens)
            for i, item in enumerate(message.items)
        ],
        options=_options(message),
        min_version=message.min_version,
        return_text=message.return_text,
        report_progress=message.report_progress,
    )


def _item(
    message: policy_pb2.GenerateItem, field: str, *, add_special_tokens: bool
) -> GenerateItem:
    given: Prompt | PlainText = prompt(message.prompt, f"{field}.prompt")
    if isinstance(given, FormattedText) and add_special_tokens:
        given = PlainText(given.text)
    return GenerateItem(
        prompt=given,
        n=message.n or 1,
        seed=message.seed if message.HasField("seed") else None,
        id=message.id,
        drawn=message.drawn,
    )


def _options(request: policy_pb2.GenerateRequest) -> SamplingOptions:
    message = request.options
    return SamplingOptions(
        max_tokens=message.max_tokens,
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        stop_token_ids=tuple(message.stop_token_ids),
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
        skip_special_tokens=request.skip_special_tokens,
        continues_text=request.continues_text,
    )


_REASONS = {
    FinishReason.STOP: policy_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: policy_pb2.FINISH_REASON_LENGTH,
}


def response(drawn: Drawn) -> policy_pb2.GenerateResponse:
    """A completion as a message."""
    return policy_pb2.GenerateResponse(
        finish_reason=_REASONS[drawn.completion.finish_reason],
        text=drawn.text,
        **completion_fields(drawn),
    )


def progress(tokens: Mapping[tuple[int, int], int]) -> policy_pb2.GenerateResponse:
    """The tokens drawn so far of completions, by item and sample, as a message."""
    return policy_pb2.GenerateResponse(
        progress=[
            policy_pb2.CompletionProgress(item=item, sample=sample, tokens=count)
            for (item, sample), count in tokens.items()
        ]
    )


def completion_fields(drawn: Drawn) -> dict[str, Any]:
    """The fields of a completion that are the same in a message and in JSON."""
    completion = drawn.completion
    return {
        "item": drawn.item,
        "id": drawn.id,
        "sample": completion.index,
        "token_ids": completion.token_ids.tolist(),
        "logprobs": completion.logprobs.tolist(),
        "stop_text": completion.stop_text or None,
        "spans": [field_values(span) for span in completion.spans],
        "prompt_token_ids": drawn.prompt.tolist(),
    }


class StatusReader:
    """Reads the policy's status from its engine.

    Args:
        limit: most completions running and waiting.
    """

    def __init__(self, engine: PolicyEngine, *, limit: int, shared_path: bool, nccl: bool) -> None:
        self._engine = engine
        self._fixed: dict[str, Any] = {"limit": limit, "shared_path": shared_path, "nccl": nccl}
        self._instance = secrets.token_hex(16)

    def read(self) -> GetPolicyResponse:
        """The status now."""
        engine = self._engine
        running, waiting = engine.load()
        return GetPolicyResponse(
            instance=self._instance,
            weight_version=engine.version,
            weight_sha256=engine.sha256,
            running=running,
            waiting=waiting,
            **dataclasses.asdict(engine.info),
            **self._fixed,
        )
