"""An OpenAI-compatible endpoint: one chat completion asked for, and its text.

What the endpoint says of an error goes to the log, less the key, and to nobody else; callers are
told which setting helps, where it names a field that a setting leaves out or renames.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from guerdon.data.json_values import parsed
from guerdon.http_services import (
    ReplyTooLong,
    new_client,
    retry_after,
    shown,
    whole_reply,
)
from guerdon.reward.judge.settings import JudgeSettings

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 1024 * 1024
LONGEST_RETRY_AFTER = 86_400
"""Seconds: the longest Retry-After that is believed."""
ENDED = ("stop", "eos_token")
"""What a completion's `finish_reason` is where the model itself ended it."""

REMEDIES = {
    "response_format": "verdict.send_schema = false leaves it out",
    "max_tokens": 'limit_field = "max_completion_tokens" gives it another name',
    "temperature": "send_temperature = false leaves it out",
}
"""Settings that help where an endpoint doesn't take a field of the request."""


class AskFailed(Exception):
    """A request that brought no reply to read; the text says why, for callers.

    Args:
        outcome: as the metrics name it.
        reason: about the endpoint.
        retry_after: seconds, where the endpoint said when to come back.
        final: whether asking again would bring the same.
        tokens: what it cost all the same, as far as the endpoint says.
    """

    def __init__(
        self,
        outcome: str,
        reason: str,
        *,
        retry_after: float | None = None,
        final: bool = False,
        tokens: int = 0,
    ) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.retry_after = retry_after
        self.final = final
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said."""

    text: str
    tokens: int | None
    """Tokens of question and reply, if the endpoint counts them."""


class JudgeEndpoint:
    """Asks for chat completions. All methods but `close` belong to one event loop.

    Args:
        settings: of the judge.
        key: of the endpoint; empty where it wants none.
        schema: of a reply, which the endpoint is to hold it to; None for any text.
    """

    def __init__(
        self, settings: JudgeSettings, key: str, schema: Mapping[str, Any] | None = None
    ) -> None:
        self._settings = settings
        self._key = key
        self._url = settings.url.rstrip("/") + "/chat/completions"
        self._fields: dict[str, Any] = {
            **settings.extra,
            "model": settings.model,
            settings.limit_field: settings.max_tokens,
        }
        if settings.send_temperature:
            self._fields["temperature"] = settings.temperature
        if schema is not None:
            self._fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": schema},
            }
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, messages: Sequence[Mapping[str, str]], vote: int) -> Reply:
        """The reply to a conversation.

        Args:
            messages: of the conversation.
            vote: its number from 0; each has a seed of its own where the settings have one.

        Raises:
            AskFailed: there is none.
        """
        body = {**self._fields, "messages": list(messages)}
        if self._settings.seed is not None:
            body["seed"] = self._settings.seed + vote
        timeout = self._settings.limits.timeout
        try:
            async with asyncio.timeout(timeout):  # of all of it, however slowly it comes
                return _read(await self._posted(body))
        except TimeoutError as error:
            raise AskFailed("timeout", f"gave no answer in {timeout:g} s") from error
        except httpx.HTTPError as error:
            logger.warning("the judge's endpoint %s: %s", self._url, shown(str(error), self._key))
            raise AskFailed("away", "cannot be reached") from error

    def close(self) -> None:
        """Close the connections; from any thread but the event loop's."""
        if self._client is not None and self._loop is not None and self._loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop)
            with contextlib.suppress(TimeoutError):
                closing.result(10)

    async def _posted(self, body: Mapping[str, Any]) -> bytes:
        if self._client is None:
            at_once = self._settings.limits.at_once
            self._client = new_client(self._url, self._key, at_once=at_once)
            self._loop = asyncio.get_running_loop()
        async with self._client.stream("POST", self._url, json=body) as response:
            try:
                reply = await whole_reply(response, MAX_REPLY_BYTES)
            except ReplyTooLong as error:
                raise AskFailed("invalid", f"gave a reply {error}") from error
            if response.status_code != 200:
                raise self._refused(response, reply)
            return reply

    def _refused(self, response: httpx.Response, reply: bytes) -> AskFailed:
        status = response.status_code
        said = shown(reply.decode("utf-8", "replace"), self._key)
        logger.warning("the judge's endpoint %s: HTTP %d: %s", self._url, status, said)
        reason = f"answers with HTTP {status}"
        after = retry_after(response, LONGEST_RETRY_AFTER)
        if status == 429:
            return AskFailed("limited", reason, retry_after=after)
        if status >= 500 or status == 408:
            return AskFailed("away", reason, retry_after=after)
        if (field := _field_at_fault(reply)) in self._fields.keys() & REMEDIES:
            reason += f" for the field {field}; if it never takes that, {REMEDIES[field]}"
        return AskFailed("refused", reason, final=True)


def _field_at_fault(reply: bytes) -> str:
    """The field of the request that an error in OpenAI's shape names; empty if it names none."""
    try:
        param = json.loads(reply)["error"]["param"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return param.partition(".")[0] if isinstance(param, str) else ""


def _read(body: bytes) -> Reply:
    """The text of a completion.

    Raises:
        AskFailed: it has none, or was cut.
    """

    def fail(path: str, why: str) -> AskFailed:
        return AskFailed("invalid", f"gave a reply that is no chat completion: {path} {why}")

    found = parsed(body.decode("utf-8", "replace"), "it", fail)
    try:
        choice = found["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
        tokens = (found.get("usage") or {}).get("total_tokens")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise fail("it", "lacks a message") from None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        tokens = None
    if ended not in ENDED:
        reason = "length" if ended == "length" else "another reason"
        raise AskFailed("invalid", f"gave a reply that was cut ({reason})", tokens=tokens or 0)
    if not isinstance(text, str):
        reason = "gave a reply that is no chat completion: its message has no text"
        raise AskFailed("invalid", reason, tokens=tokens or 0)
    return Reply(text, tokens)
