"""OpenAI's answers: completions, the chunks of their streams, lists of models, errors."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from guerdon.serving.http.errors import ErrorBody, native_error
from guerdon.serving.status import ErrorStatus

Json = dict[str, Any]


def as_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: half a surrogate pair passes, and U+2028 ends no line of a stream."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What the objects of chat answers are called, and those of text answers."""

    prefix: str
    whole: str
    chunk: str

    def choice(self, index: int, text: str, **fields: Any) -> Json:
        """A choice of a whole answer."""
        if self is CHAT:
            fields = {"message": {"role": "assistant", "content": text}, **fields}
        else:
            fields = {"text": text, **fields}
        return {"index": index, "finish_reason": None, "logprobs": None, **fields}

    def delta(self, index: int, text: str | None, *, first: bool = False, **fields: Any) -> Json:
        """A choice of a chunk: what its text grew by.

        Args:
            text: None where it did not grow.
            first: of the choice.
        """
        if self is CHAT:
            role = {"role": "assistant"} if first else {}
            said = {} if text is None else {"content": text}
            fields = {"delta": {**role, **said}, **fields}
        else:
            fields = {"text": text or "", **fields}
        return {"index": index, "finish_reason": None, "logprobs": None, **fields}


CHAT = AnswerShape(prefix="chatcmpl", whole="chat.completion", chunk="chat.completion.chunk")
TEXT = AnswerShape(prefix="cmpl", whole="text_completion", chunk="text_completion")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer have in common."""

    shape: AnswerShape
    model: str
    id: str
    created: int

    @classmethod
    def new(cls, shape: AnswerShape, model: str) -> Envelope:
        """One for an answer that begins now."""
        return cls(shape, model, f"{shape.prefix}-{secrets.token_hex(16)}", int(time.time()))

    def whole_answer(self, choices: Sequence[Json], usage: Json, **fields: Any) -> Json:
        """The whole answer."""
        return self._named(self.shape.whole, choices=list(choices), usage=usage, **fields)

    def chunk(self, *choices: Json, **fields: Any) -> Json:
        """A part of a stream."""
        return self._named(self.shape.chunk, choices=list(choices), **fields)

    def _named(self, kind: str, **fields: Any) -> Json:
        named = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**named, **fields}


def usage(prompt: int, completion: int, details: Mapping[str, int] | None = None) -> Json:
    """Tokens that were computed.

    Args:
        details: of the completion tokens.
    """
    found: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if details:
        found["completion_tokens_details"] = dict(details)
    return found


def models_reply(models: Iterable[Json]) -> Json:
    """The answer of GET /v1/models."""
    return {"object": "list", "data": list(models)}


def model_entry(name: str, created: int, **fields: Any) -> Json:
    """A model of GET /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "guerdon", **fields}


def openai_error(status: ErrorStatus, code: int | None = None) -> dict[str, Any]:
    """The body of an error.

    Args:
        code: of HTTP, where it is not the status's own.
    """
    http_code = status.http_code if code is None else code
    kind = _TYPES.get(status.code, "InternalServerError")
    error = {
        "message": status.message,
        "type": "BadRequestError" if http_code in _HTTP_ONLY else kind,
        "param": status.field or None,
        "code": http_code,
    }
    return {"error": error}


def errors_beside(native: Collection[str] = ()) -> ErrorBody:
    """Errors in OpenAI's shape at all paths under /v1 but the native ones, whether served or not.

    For what is refused before a route has it.
    """

    def body(path: str, status: ErrorStatus, code: int) -> Json:
        if path.startswith("/v1/") and path not in native:
            return openai_error(status, code)
        return native_error(path, status, code)

    return body


_TYPES = {
    grpc.StatusCode.INVALID_ARGUMENT: "BadRequestError",
    grpc.StatusCode.FAILED_PRECONDITION: "BadRequestError",
    grpc.StatusCode.NOT_FOUND: "NotFoundError",
    grpc.StatusCode.UNAUTHENTICATED: "AuthenticationError",
    grpc.StatusCode.PERMISSION_DENIED: "PermissionDeniedError",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RateLimitError",
    grpc.StatusCode.UNAVAILABLE: "ServiceUnavailableError",
}
_HTTP_ONLY = (405, 408, 413)
"""HTTP codes of faults of a request that gRPC's codes don't tell from others."""
