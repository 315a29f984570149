"""From options to a client, and from the client's errors to sentences and exit codes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from guerdon import client as api
from guerdon.cli import options as opt
from guerdon.cli.errors import CommandError, ExitCode
from guerdon.v1.admin_pb2_grpc import ModelAdminServiceStub

_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is and how to be let in."""

    server: str
    token: str | None
    tls: bool
    tls_ca: Path | None
    timeout: float | None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[api.AsyncRewardClient]:
        """A client, closed at the end.

        Raises:
            CommandError: the server is not there, went away, is overloaded or took too long.
        """
        tls = api.TLS(ca=self.tls_ca) if self.tls or self.tls_ca else None
        try:
            async with api.AsyncRewardClient(
                self.server, token=self.token, tls=tls, timeout=self.timeout
            ) as client:
                yield client
        except (api.Unavailable, api.DeadlineExceeded, api.Overloaded) as exc:
            where = "" if self.server in exc.message else f"{self.server}: "
            raise CommandError(where + exc.message, ExitCode.UNREACHABLE) from exc

    def admin(self, method: Callable[[ModelAdminServiceStub], Any], request: Any) -> Any:
        """Calls a method of ModelAdminService and gives its reply.

        Raises:
            CommandError: the server refused, failed, or is not there.
        """
        metadata = [("authorization", f"Bearer {self.token}")] if self.token else []
        with self._channel() as channel:
            try:
                stub = ModelAdminServiceStub(channel)
                return method(stub)(request, timeout=self.timeout, metadata=metadata)
            except grpc.RpcError as exc:
                raise self._failed(exc) from exc

    def _failed(self, exc: Any) -> CommandError:
        away = exc.code() in _UNREACHABLE
        message = f"{self.server}: {exc.details() or exc.code().name}"
        return CommandError(message, ExitCode.UNREACHABLE if away else ExitCode.FAILED)

    def _channel(self) -> grpc.Channel:
        if not (self.tls or self.tls_ca):
            return grpc.insecure_channel(self.server)
        roots = self.tls_ca.read_bytes() if self.tls_ca else None
        return grpc.secure_channel(self.server, grpc.ssl_channel_credentials(roots))


def score_options(
    priority: opt.Priority,
    truncation: opt.Truncation,
    activation: opt.Activation,
    normalize: bool,
    timeout: float | None,
) -> dict[str, Any]:
    """The keyword arguments of the client's scoring methods."""
    return {
        "priority": priority.value,
        "truncation": truncation.value.replace("-", "_"),
        "activation": activation.value,
        "normalize": normalize,
        "timeout": timeout,
    }


def is_row_error(error: Exception) -> bool:
    """Whether the server refused or failed this row alone, so that others may go on."""
    if isinstance(error, api.Overloaded):
        return error.retry_after is None  # the row is too large for the server
    return isinstance(error, api.InvalidArgument | api.Internal)


def explain(error: Exception) -> tuple[str, ExitCode] | None:
    """A sentence and an exit code for an error of the client; None for any other."""
    if not isinstance(error, api.GuerdonError):
        return None
    bad_input = isinstance(error, api.InvalidArgument)
    return error.message, ExitCode.USAGE if bad_input else ExitCode.FAILED
