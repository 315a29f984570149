"""Rewards by an HTTP service of the user's own: a POST for each completion.

    {"prompt": text or messages, "response": text, "row": {the row's other columns}}

is answered by a number, or by `{"reward": number}`. A service that is away (no connection, no
answer in time, 5xx, 408, 429) is asked again as long as the run's patience lasts; any other answer
that is no finite number ends the run. Redirects are not followed: what follows one would hand the
token to whoever it names.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo

from guerdon.addresses import is_loopback
from guerdon.client import DeadlineExceeded, Unavailable
from guerdon.data import RowError
from guerdon.together import together
from guerdon.trainer.common.data.row_notes import finite
from guerdon.trainer.common.errors import SettingsError
from guerdon.trainer.common.services.credentials import VERIFIER_TOKEN_VARIABLE, Credentials
from guerdon.trainer.common.services.patience import Patience, ServiceRefused
from guerdon.trainer.common.services.types import PromptRow, Sample

if TYPE_CHECKING:
    import httpx

AT_ONCE = 16
"""Most requests to one service at a time."""
MAX_REPLY_BYTES = 64 * 1024
_JSON = {"content-type": "application/json"}
_LONGEST_RETRY_AFTER = 60
"""Seconds: the longest Retry-After that is believed."""


class HttpReward:
    """The verifier `https://…`; connects at the first question.

    Args:
        url: of the service; `http` on this machine alone.
        patience: seconds that it may stay away.
        request_timeout: seconds for one request.
        credentials: its token, and the authorities that are trusted beside the system's.

    Raises:
        SettingsError: the URL can't be, or holds what is kept nowhere.
    """

    needs_answer = False

    def __init__(
        self, url: str, patience: float, request_timeout: float, credentials: Credentials
    ) -> None:
        _check_url(url)
        self._url = url
        self._timeout = request_timeout
        self._token = credentials.verifier_token or ""
        self._tls = credentials.tls
        self._patience = Patience("the reward", url, patience)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._client: httpx.AsyncClient | None = None

    @property
    def faults_survived(self) -> int:
        """Times that the service was away and came back."""
        return self._patience.faults_survived

    def check(self, row: PromptRow) -> None:
        """Any row will do."""

    async def start(self) -> str:
        """Nothing tells one service from another at its address."""
        return ""

    async def score(self, row: PromptRow, samples: Sequence[Sample]) -> list[float]:
        """What the service answers for each completion.

        Raises:
            ServiceGone: it stayed away.
            ServiceRefused: it answered with something else than a finite number.
        """
        return await together([self._one(row, sample) for sample in samples])

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _one(self, row: PromptRow, sample: Sample) -> float:
        question = {"prompt": row.prompt, "response": sample.text, "row": dict(row.extra)}
        body = json.dumps(question).encode()
        async with self._room:
            reply = await self._patience.ask(lambda: self._posted(body, row))
        try:
            return _reward(reply)
        except RowError as error:
            raise self._refused(row, f"its {error}", reply) from error
        except (ValueError, RecursionError) as error:
            raise self._refused(row, "it answers with no JSON", reply) from error

    async def _posted(self, body: bytes, row: PromptRow) -> bytes:
        """The body of a good answer.

        Raises:
            Unavailable: the service is away; the same may succeed later.
            DeadlineExceeded: it gave no answer in time.
            ServiceRefused: it answered otherwise.
        """
        import httpx

        from guerdon.http_services import ReplyTooLong, new_client, whole_reply

        if self._client is None:
            ca = None if self._tls is None else self._tls.ca
            self._client = new_client(self._url, self._token, at_once=AT_ONCE, ca=ca)
        try:
            async with (
                asyncio.timeout(self._timeout),  # of all of it, however slowly it comes
                self._client.stream("POST", self._url, content=body, headers=_JSON) as response,
            ):
                self._check_status(response, row)
                reply = await whole_reply(response, MAX_REPLY_BYTES)
                if not response.is_success:
                    raise self._refused(row, f"HTTP {response.status_code}", reply)
                return reply
        except ReplyTooLong as error:
            raise self._refused(row, f"its answer is {error}", b"") from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer in {self._timeout:g} seconds") from error
        except httpx.TransportError as error:
            raise Unavailable(str(error) or type(error).__name__) from error

    def _check_status(self, response: httpx.Response, row: PromptRow) -> None:
        """What the status says by itself, however long the body is."""
        status = response.status_code
        if status >= 500 or status in (408, 429):
            raise Unavailable(f"HTTP {status}", details=_retry_info(response))
        if response.is_redirect:
            raise self._refused(row, f"it redirects (HTTP {status}), which is not followed", b"")
        if status in (401, 403):
            reason = f"HTTP {status} ({VERIFIER_TOKEN_VARIABLE} or --verifier-token-file)"
            raise self._refused(row, reason, b"")

    def _refused(self, row: PromptRow, reason: str, reply: bytes) -> ServiceRefused:
        """The error for an answer; the token is not in it, even if the service sent it back."""
        from guerdon.http_services import shown

        text = shown(reply.decode("utf-8", errors="replace"), self._token)
        said = f": {text}" if text else ""
        return ServiceRefused(
            f"the reward at {self._url} can't be had: {reason}{said} "
            f"(the prompt is row {row.index + 1})"
        )


def _check_url(url: str) -> None:
    """Refuse a URL that can't be asked, or not be kept in a run's folder.

    Raises:
        SettingsError: says why.
    """
    shape = "verifier: the URL is not https://HOST[:PORT]/PATH"  # unquoted: it may hold a password
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SettingsError(shape) from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise SettingsError(
            "verifier: a URL with a name, a password, a query or a fragment is refused, for the "
            f"settings are kept in the run's folder: a token goes in {VERIFIER_TOKEN_VARIABLE} or "
            "--verifier-token-file"
        )
    try:
        known = bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or any(not 32 < ord(character) < 127 for character in url):
        raise SettingsError(shape)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise SettingsError(f"verifier: {url!r}: http is for this machine alone; elsewhere https")


def _reward(reply: bytes) -> float:
    """The number of an answer.

    Raises:
        RowError: it is missing, or not finite.
        ValueError: the answer is no JSON.
    """
    found: Any = json.loads(reply)
    if isinstance(found, dict):
        if "reward" not in found:
            raise RowError("reward", "is missing")
        found = found["reward"]
    return finite(found, "reward")


def _retry_info(response: httpx.Response) -> list[RetryInfo]:
    """When the service says to come back, where it says it in seconds."""
    from guerdon.http_services import retry_after

    seconds = retry_after(response, _LONGEST_RETRY_AFTER)
    return [] if seconds is None else [RetryInfo(retry_delay=Duration(seconds=int(seconds)))]
