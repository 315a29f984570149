"""Clients made from options, and sentences and exit codes for the clients' errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from guerdon import client as api
from guerdon.cli import options as opt
from guerdon.cli.errors import CommandError, ExitCode

_Client = TypeVar(
    "_Client", api.AsyncRewardClient, api.RewardClient, api.AdminClient, api.PolicyClient
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options that say where the server is and how to be let in."""

    server: str
    token: str | None
    tls: bool
    tls_ca: Path | None
    timeout: float | None
    patient: bool = True
    """Whether to try again, within the timeout, what an absent or busy server did not answer."""

    def first(self, wait: float) -> ServerOptions:
        """Options of a first question, which waits `wait` seconds for a server to be there."""
        return replace(self, timeout=wait or self.timeout, patient=wait > 0)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[api.AsyncRewardClient]:
        """A client, closed at the end.

        Raises:
            CommandError: the server is not there, went away, is overloaded or took too long.
        """
        with self._located():
            async with self._make(api.AsyncRewardClient) as client:
                yield client

    @contextmanager
    def rewards(self) -> Iterator[api.RewardClient]:
        """A client for programs without an event loop, closed at the end.

        Raises:
            CommandError: as for `open`.
        """
        with self._located(), self._make(api.RewardClient) as client:
            yield client

    @contextmanager
    def admin(self) -> Iterator[api.AdminClient]:
        """A client of ModelAdminService, closed at the end.

        Raises:
            CommandError: as for `open`.
        """
        with self._located(), self._make(api.AdminClient) as client:
            yield client

    @contextmanager
    def policy(self) -> Iterator[api.PolicyClient]:
        """A client of PolicyService, closed at the end.

        Raises:
            CommandError: as for `open`.
        """
        with self._located(), self._make(api.PolicyClient) as client:
            yield client

    def _make(self, kind: type[_Client]) -> _Client:
        tls = api.TLS(ca=self.tls_ca) if self.tls or self.tls_ca else None
        if self.server.startswith(("http://", "https://")):  # streams are for gRPC alone
            what = "the server must be host:port of gRPC, without a scheme."
            raise CommandError(what, ExitCode.USAGE)
        try:
            retry = api.Retry() if self.patient else api.Retry(attempts=1)
            return kind(self.server, token=self.token, tls=tls, timeout=self.timeout, retry=retry)
        except ValueError as exc:
            raise CommandError(f"{exc}.", ExitCode.USAGE) from exc

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Says which server it is that can't be used."""
        try:
            yield
        except (api.Unavailable, api.DeadlineExceeded, api.Overloaded) as exc:
            where = "" if self.server in exc.message else f"{self.server}: "
            raise CommandError(where + exc.message, ExitCode.UNREACHABLE) from exc
        except api.Unimplemented as exc:
            raise CommandError(
                f"{self.server} does not have this service: `guerdon policy` describes a policy "
                "sampler, the other commands are for reward servers."
            ) from exc


def score_options(
    priority: opt.Priority,
    truncation: opt.Truncation,
    activation: opt.Activation,
    normalize: bool,
    timeout: float | None,
    *,
    reject_dropped_text: bool = False,
    reject_control_tokens: bool = False,
) -> api.ScoringOptions:
    """The keyword arguments of the client's scoring methods."""
    return api.ScoringOptions(
        priority=priority.value,
        truncation="prompt_left" if truncation is opt.Truncation.PROMPT_LEFT else "reject",
        activation=activation.value,
        normalize=normalize,
        timeout=timeout,
        reject_dropped_text=reject_dropped_text,
        reject_control_tokens=reject_control_tokens,
    )


def is_row_error(error: Exception) -> bool:
    """Whether the server refused or failed this row alone, so that others may go on."""
    if isinstance(error, api.Overloaded):
        return error.retry_after is None  # the row is too large for the server
    return isinstance(error, api.InvalidArgument | api.Internal)


def remedy(error: Exception) -> str:
    """The options that let a run go on with a row that the server refused, in brackets."""
    if not isinstance(error, api.InvalidArgument):
        return ""
    why = [violation.description for violation in error.field_violations]
    if any(text.startswith("is too long:") for text in why):
        return (
            " (--truncation prompt-left drops the start of its prompt, --on-error skip leaves "
            "the row out)"
        )
    return " (--on-error skip leaves the row out)"


def explain(error: Exception) -> tuple[str, ExitCode] | None:
    """A sentence and an exit code for an error of the client; None for any other."""
    if not isinstance(error, api.GuerdonError):
        return None
    bad_input = isinstance(error, api.InvalidArgument)
    return error.message, ExitCode.USAGE if bad_input else ExitCode.FAILED
